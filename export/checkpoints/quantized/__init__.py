"""Reads checkpoints whose weights are already quantized, one module for each way of storing them."""
