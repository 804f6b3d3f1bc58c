"""Products with int8 weights: how activations become digits, how weights are rounded."""
