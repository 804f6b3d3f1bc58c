"""Who may ask, how much, and how long a connection may keep the server waiting."""
