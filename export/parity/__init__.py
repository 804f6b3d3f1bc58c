"""Checks exported graphs against a numpy reference, before an engine is installed."""
