"""Turns checkpoints into engine directories. The runtime never imports this package."""
