"""The demo model in the formats of the other engines."""
