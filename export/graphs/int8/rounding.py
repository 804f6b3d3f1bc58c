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

_HEAD = "head"  # its inputs stay as they are with TensorRT


class Calibration(Protocol):
    """Says how the inputs of each product vary together in usual text."""

    def inverse_root(self, stem: str) -> np.ndarray:
        """What `round_with_feedback` needs for the matrix ``stem``. Asked in the order in which a graph has them."""


@dataclass(frozen=True)
class Rounding:
    """``rotated``: the residual stream was rotated, so one digit is enough for inputs. ``unsigned``: matrices with one digit are
    stored as uint8, for processors that add pairs of products in 16 bits. ``calibration``: None rounds each weight to the nearest
    integer."""

    rotated: bool = False
    unsigned: bool = False
    calibration: Calibration | None = None

    @property
    def chunks(self) -> int:
        """Size of the row blocks that are rounded at once (`converted_rows`). Feedback goes through all inputs of each, one by one."""
        return 1 if self.calibration is None else 32

    @property
    def digits(self) -> int:
        """Of inputs on the CPU. Those of `down` are spread in a rotated model; whole blocks of weights are whole blocks of Arch.spread."""
        return 1 if self.rotated else 2

    def rounds_inputs(self, stem: str, kind: int) -> bool:
        """Whether the product of the matrix ``stem``, stored as ``kind``, has inputs of eight bits with TensorRT. Float8 needs no rotation,
        because its steps are larger for larger numbers."""
        return stem != _HEAD and (kind == FLOAT8 or self.rotated)

    def quantizer(self, stem: str, kind: int = INT8) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Rounds rows of the matrix ``stem``, [n, inputs], to ``kind`` with one scale a row."""
        if kind == FLOAT8:
            return quantize_rows
        if self.calibration is None:
            return quantize_outputs
        return partial(round_with_feedback, root=self.calibration.inverse_root(stem))


TWO_DIGITS = Rounding()
