"""Drafts that guess several tokens in one pass."""
