"""Integers of four or eight bits in 32-bit words, as GPTQ, AWQ and compressed-tensors pack them: the first in the lowest bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def unpacked(words: np.ndarray, bits: int, axis: int, order: Sequence[int] | None = None) -> np.ndarray:
    """int32 words -> uint8 values, 32 / bits times as many along ``axis`` (0 or 1). ``order``: which value of a group of 32 / bits stands
    at each place of a word; by default their own order."""
    plain = np.ascontiguousarray(words if axis == 1 else words.T, dtype="<i4").view(np.uint8)
    if bits == 4:
        plain = np.stack([plain & 0x0F, plain >> 4], axis=-1)
    plain = plain.reshape(len(plain), -1)
    if order is not None:
        plain = plain.reshape(len(plain), -1, len(order))[..., np.argsort(order)].reshape(plain.shape)
    return plain if axis == 1 else plain.T


def signed(values: np.ndarray, bits: int) -> np.ndarray:
    """uint8 values from 0 -> int8 values around 0. A difference of two values stays what it is."""
    return (values - np.uint8(1 << (bits - 1))).view(np.int8)  # bytes wrap around


def word_columns(words: np.ndarray, bits: int, start: int, stop: int, order: Sequence[int] | None = None) -> np.ndarray:
    """Columns [start, stop) of a matrix that is packed along axis 1."""
    each = 32 // bits
    first = start // each
    return unpacked(words[:, first : -(-stop // each)], bits, 1, order)[:, start - first * each : stop - first * each]
