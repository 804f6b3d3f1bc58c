"""The drafters, which propose the tree of each round, and the registry of their names."""
