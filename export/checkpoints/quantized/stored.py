"""Rows of a quantized matrix as a checkpoint stores them, and what is known of a matrix before its rows are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

INT4, INT8, FP8 = "int4", "int8", "fp8"
BITS = {INT4: 4, INT8: 8, FP8: 8}


class Tensors(Protocol):
    """Tensors in their stored types (a part of safetensors.Files)."""

    @property
    def path(self) -> Path:
        """The directory, for messages."""

    def names(self) -> list[str]:
        """Names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""

    def stored_type(self, name: str) -> np.dtype[Any]:
        """The type in which a tensor is stored."""

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of a tensor in its stored type."""


@lru_cache(maxsize=6)
def whole(stored: Callable[[str], np.ndarray], name: str) -> np.ndarray:
    """A tensor whose rows are not the matrix's, so that some outputs cannot be read alone. The last few are kept: a matrix is read block by
    block. ``stored``: of the files."""
    return stored(name)


@dataclass(frozen=True)
class Form:
    """How a matrix is stored.

    ``kind``: INT4, INT8 or FP8. ``block``: consecutive inputs that share a scale; the last block may be shorter. ``zero_points``: whether a
    block's zero is another value than 0. ``scale_type``: in which scales are stored, so that no precision and no space is lost.
    ``order``: int32 bytes of the inputs in the order of their blocks; None where that is the inputs' own order.
    """

    kind: str
    block: int
    zero_points: bool
    scale_type: np.dtype[Any]
    order: bytes | None = None

    @property
    def permutation(self) -> np.ndarray | None:
        """``order`` as an array [inputs]."""
        return None if self.order is None else np.frombuffer(self.order, np.int32)


@dataclass(frozen=True)
class StoredIntegers:
    """Rows [n, inputs] of a matrix, whose weights are (values - zero_points) * scales, block by block.

    ``values``: int8, from -8 to 7 for four bits, or float8 (e4m3fn) [n, inputs], inputs in the order of Form. ``scales``: float32
    [n, blocks]; ``zero_points``: int8 [n, blocks], None for zeros.
    """

    values: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None
    block: int

    def dequantized(self) -> np.ndarray:
        """float32 [n, inputs]. One rounding at most: a difference of integers has nine bits."""
        inputs = self.values.shape[1]
        weights = self.values.astype(np.float32)
        if self.zero_points is not None:
            weights -= np.repeat(self.zero_points.astype(np.float32), self.block, axis=1)[:, :inputs]
        weights *= np.repeat(self.scales, self.block, axis=1)[:, :inputs]
        return weights


class QuantizedMatrix(Protocol):
    """One matrix of a checkpoint. ``tensors``: names of all that it is stored in, or that belong to it and are ignored."""

    @property
    def shape(self) -> tuple[int, int]:
        """[outputs, inputs]."""

    @property
    def tensors(self) -> Sequence[str]: ...

    @property
    def form(self) -> Form:
        """Reads small tensors only: zero points and the inputs' order."""

    def rows(self, start: int, stop: int) -> StoredIntegers:
        """Rows [start, stop)."""


@runtime_checkable
class HasIntegers(Protocol):
    """Weights of which some are stored quantized."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""

    def form(self, name: str) -> Form | None:
        """How a tensor is stored; None if it is not quantized."""

    def integers(self, name: str, start: int, stop: int) -> StoredIntegers:
        """Rows [start, stop) of a quantized tensor."""


def dequantized_rows(matrix: QuantizedMatrix, start: int, stop: int) -> np.ndarray:
    """Rows [start, stop) as float32, inputs in the model's order."""
    weights, order = matrix.rows(start, stop).dequantized(), matrix.form.permutation
    if order is None:
        return weights
    restored = np.empty_like(weights)
    restored[:, order] = weights
    return restored
