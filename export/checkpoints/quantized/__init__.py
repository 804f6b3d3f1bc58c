"""Quantized checkpoints: where their settings stand, and one reader a method that gives the weights which the stored integers stand for."""
