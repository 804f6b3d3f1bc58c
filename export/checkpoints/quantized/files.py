"""The weight files of a quantized checkpoint, as if they held the weights that the stored values stand for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ..finite import is_finite
from ..safetensors import Files
from .stored import Form, QuantizedMatrix, StoredIntegers, dequantized_rows

CACHE_SCALES = tuple(f".{part}_{kind}" for part in ("k", "v", "q", "kv") for kind in ("scale", "zero_point"))
"""Ends of the names of what a KV cache of eight bits would be scaled by. Our caches are not rounded."""


class QuantizedFiles:
    """``files`` with every matrix of ``matrices`` under its usual name, and without the tensors that it is stored in.

    Tensors that belong to no matrix keep their names, so that a check of the names finds them; scales of the KV cache are left out.
    Raises CheckpointError for a matrix that is stored unquantized as well.
    """

    def __init__(self, files: Files, matrices: Mapping[str, QuantizedMatrix]) -> None:
        self.path: Path = files.path
        self.files: list[Path] = files.files
        self._files, self._matrices = files, matrices
        used = {name for matrix in matrices.values() for name in matrix.tensors}
        others = [name for name in files.names() if name not in used and not name.endswith(CACHE_SCALES)]
        if double := sorted(matrices.keys() & set(others)):
            raise CheckpointError(f"{self.path} has both {double[0]} and {matrices[double[0]].tensors[0]} — download the checkpoint again")
        self._names = sorted({*others, *matrices})

    def names(self) -> list[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._matrices[name].shape if name in self._matrices else self._files.shape(name)

    def stored_type(self, name: str) -> np.dtype[Any]:
        """Of a quantized matrix float32, in which it is read."""
        return np.dtype(np.float32) if name in self._matrices else self._files.stored_type(name)

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.read(name, start, stop) if name in self._matrices else self._files.stored(name, start, stop)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if name not in self._matrices:
            return self._files.read(name, start, stop)
        rows = range(self.shape(name)[0])[start:stop]
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = dequantized_rows(self._matrices[name], rows.start, rows.stop)
        if not is_finite(numbers):
            self._refuse_numbers(name)
        return numbers

    def form(self, name: str) -> Form | None:
        """How a tensor is stored; None if it is not quantized."""
        return self._matrices[name].form if name in self._matrices else None

    def integers(self, name: str, start: int, stop: int) -> StoredIntegers:
        """Rows [start, stop) of a quantized tensor. Raises CheckpointError if a scale or a float8 value is not finite."""
        found = self._matrices[name].rows(start, stop)
        if not is_finite(found.scales) or not is_finite(found.values):
            self._refuse_numbers(name)
        return found

    def _refuse_numbers(self, name: str) -> None:
        """Raises CheckpointError with the stored tensor whose numbers are not finite, and its file."""
        for tensor in self._matrices[name].tensors:
            self._files.read(tensor)
        raise CheckpointError(f"{self.path} has numbers in {name} that are not finite: its scales are too large — take other weights")

    def fingerprint(self) -> list[list[Any]]:
        return self._files.fingerprint()
