"""What export/training/cli.py is made of: the target in torch, its own words as training data, the draft and its training."""
