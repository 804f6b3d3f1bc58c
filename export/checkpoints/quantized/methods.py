"""The methods of quantization that can be read, and the refusal of all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ...errors import UnsupportedModel
from ..safetensors import Files
from .settings import Quantization

Reader = Callable[[Files], Files]
"""Stored tensors -> the float weights that they stand for, under the names of an unquantized checkpoint. Tensors that the method does not
know keep their names, so that the check of the target names them."""

READERS: dict[str, Callable[[Quantization], Reader]] = {}
"""Reader of each method. Raises UnsupportedModel for settings that it cannot read exactly; no tensor is opened for that."""


@dataclass(frozen=True)
class StoredIntegers:
    """Rows of a matrix [rows, inputs] as a checkpoint stores them; (value - zero) * scale is the weight.

    ``values``: int8 or uint8 [rows, inputs]. ``scales``: float32 [rows, groups]. ``zeros``: [rows, groups], None if all are 0.
    ``groups``: the group of each input, int64 [inputs]; None if groups are consecutive and of the same size.
    """

    values: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None
    groups: np.ndarray | None = None


@runtime_checkable
class IntegerWeights(Protocol):
    """Weights that can also be read as integers."""

    def integers(self, name: str, start: int = 0, stop: int | None = None) -> StoredIntegers | None:
        """Rows [start, stop) of a matrix; None if this one is stored in floating point."""


def reader_of(quantization: Quantization) -> Reader:
    """The reader of a quantized checkpoint, chosen from its settings alone. Raises UnsupportedModel if we have none."""
    make = READERS.get(quantization.method)
    if make is None:
        readable = f"readable: {', '.join(sorted(READERS))}; else " if READERS else ""
        raise UnsupportedModel(
            f"{quantization.source} says that the weights are quantized with {quantization.method!r}, which cannot be read — "
            f"{readable}export from the unquantized checkpoint (--precision quantizes it)"
        )
    return make(quantization)
