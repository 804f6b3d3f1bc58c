"""How a target's matrices are rounded to eight bits, and in which products their inputs are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from ..builder import FLOAT8, INT8
from ..weights import quantize_outputs, quantize_rows
from .feedback import round_with_feedback

_LEAST_SPREAD = 16
"""Size of the blocks in which outliers of `down`'s inputs must be spread for one digit; rotating the stream does not reach them."""

_HEAD = "head"  # its inputs stay as they are with TensorRT


class Calibration(Protocol):
    """Says how the inputs of each product vary together in usual text."""

    def inverse_root(self, stem: str) -> np.ndarray:
        """What `round_with_feedback` needs for the matrix ``stem``. Asked in the order in which a graph has them."""


@dataclass(frozen=True)
class Rounding:
    """``rotated``: the residual stream was rotated, so one digit is enough for most inputs. ``unsigned``: matrices with one digit are
    stored as uint8, for processors that add pairs of products in 16 bits. ``calibration``: None rounds each weight to the nearest
    integer."""

    rotated: bool = False
    unsigned: bool = False
    calibration: Calibration | None = None

    @property
    def chunks(self) -> int:
        """Size of the row blocks that are rounded at once (`converted_rows`). Feedback goes through all inputs of each, one by one."""
        return 1 if self.calibration is None else 32

    def digits(self, stem: str, spread: int) -> int:
        """Of the inputs of the matrix ``stem``. ``spread``: Arch's, of the inputs of `down`."""
        return 1 if self.rotated and (spread >= _LEAST_SPREAD or not stem.endswith(".down")) else 2

    def rounds_inputs(self, stem: str, kind: int, spread: int) -> bool:
        """Whether the product of the matrix ``stem``, stored as ``kind``, has inputs of eight bits with TensorRT. ``spread``: as in
        `digits`. Float8 needs no rotation, because its steps are larger for larger numbers."""
        return stem != _HEAD and (kind == FLOAT8 or self.digits(stem, spread) == 1)

    def quantizer(self, stem: str, kind: int = INT8) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Rounds rows of the matrix ``stem``, [n, inputs], to ``kind`` with one scale a row."""
        if kind == FLOAT8:
            return quantize_rows
        if self.calibration is None:
            return quantize_outputs
        return partial(round_with_feedback, root=self.calibration.inverse_root(stem))


TWO_DIGITS = Rounding()
