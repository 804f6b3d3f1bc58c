"""manifest.json: its types, and reading and checking an engine directory."""
