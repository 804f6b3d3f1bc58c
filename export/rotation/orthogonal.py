"""Orthogonal matrices that spread a vector over all channels and multiply fast: random signs, then a Kronecker product of small matrices.

A power of two is divided into two Hadamard matrices, the rest of the size is a Hartley matrix (cos + sin of a Fourier matrix). Multiplying
n numbers takes about n times the sum of their sizes, not n squared.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from ..hadamard import hadamard


def rotated(x: np.ndarray) -> np.ndarray:
    """x [..., size] times the orthogonal matrix of this size, in x's type."""
    shape, behind = x.shape, x.shape[-1]
    x = x * _signs(behind)
    for each in _factors(behind):
        factor = each.astype(x.dtype)
        behind //= len(factor)  # numbers of which this factor multiplies each in the same way
        x = factor @ x.reshape(-1, len(factor), behind) if behind > 1 else x.reshape(-1, len(factor)) @ factor
    return x.reshape(shape)


def rotated_outputs(weight: np.ndarray) -> np.ndarray:
    """The matrix [size, inputs], or bias [size], whose outputs are those of ``weight``, rotated."""
    return rotated(weight.T).T


@cache
def _signs(size: int) -> np.ndarray:
    return np.random.RandomState(size).choice(np.array([-1, 1], np.int8), size)


@cache
def _factors(size: int) -> tuple[np.ndarray, ...]:
    """Symmetric orthogonal matrices, the Kronecker product of which has the size."""
    power = size & -size
    first = 1 << (power.bit_length() // 2)
    return tuple(each for each in (_hartley(size // power), hadamard(power // first), hadamard(first)) if len(each) > 1) or (np.eye(1),)


def _hartley(size: int) -> np.ndarray:
    angles = 2 * np.pi / size * (np.outer(np.arange(size), np.arange(size)) % size)
    return np.asarray((np.cos(angles) + np.sin(angles)) / math.sqrt(size))
