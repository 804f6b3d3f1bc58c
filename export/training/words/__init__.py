"""Training data: seeds of conversations, their generation by the target, and their files."""
