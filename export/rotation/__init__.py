"""The same model with its residual stream turned by an orthogonal matrix, so that no channel is much larger than the others."""
