"""Hadamard matrices, which spread a vector over all channels of a block."""

from __future__ import annotations

import math

import numpy as np


def hadamard(size: int) -> np.ndarray:
    """The symmetric orthogonal matrix [size, size] of numbers with one magnitude. ``size``: a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / math.sqrt(size)


def spread(x: np.ndarray, size: int) -> np.ndarray:
    """x [..., inputs] times a Hadamard matrix, in blocks of ``size`` numbers, in x's type."""
    return np.asarray(x.reshape(-1, size) @ hadamard(size).astype(x.dtype)).reshape(x.shape)
