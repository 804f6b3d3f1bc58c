"""Rounding with error feedback: GPTQ (arXiv 2210.17323), on the statistics of a product's inputs.

The inputs are rounded one after the other. What rounding one weight does to the outputs is made good, as far as inputs vary together, by
the weights that are not rounded yet.
"""

from __future__ import annotations

import numpy as np

_BLOCK = 128  # inputs after which the errors so far are applied to all that follow
_DAMPING = 0.01  # share of the mean moment that is added to every input's, against inputs that are not seen


def inverse_root(moment: np.ndarray) -> np.ndarray:
    """The upper triangular U, float32 [inputs, inputs], for which U.T @ U is the inverse of the damped ``moment``. ``moment``: float64
    [inputs, inputs], the sum of x.T @ x over all inputs x [n, inputs]."""
    mean = float(np.diagonal(moment).mean())
    damped = moment + np.eye(len(moment)) * (_DAMPING * mean if mean > 0 else 1.0)
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    return np.triu(np.linalg.inv(lower[::-1, ::-1])).astype(np.float32)


def round_with_feedback(weight: np.ndarray, root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 values of float32 ``weight`` [n, inputs] and one float32 scale a row; value * scale approximates the weight. ``root``: what
    `inverse_root` returns."""
    scale = np.abs(weight).max(-1) / np.float32(127.0)
    scale[scale == 0] = 1.0
    left = np.ascontiguousarray((weight / scale[:, None]).T)  # an input's weights are adjacent
    values = np.empty(left.shape, np.int8)
    for first in range(0, len(left), _BLOCK):
        last = min(first + _BLOCK, len(left))
        errors = np.empty((last - first, left.shape[1]), np.float32)
        for row in range(first, last):
            nearest = np.clip(np.rint(left[row]), -127, 127)
            values[row] = nearest
            errors[row - first] = error = (left[row] - nearest) / root[row, row]
            left[row + 1 : last] -= root[row, row + 1 : last, None] * error
        left[last:] -= root[first:last, last:].T @ errors
    return values.T, scale
