"""The registry of policies, and loading the tuned ones of an engine directory."""
