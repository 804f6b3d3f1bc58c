"""Compares this engine with others: python -m scripts.peers."""
