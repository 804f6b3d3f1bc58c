"""Other engines side by side with ours: scripts/peers/__main__.py."""
