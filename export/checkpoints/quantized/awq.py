"""AWQ (AutoAWQ, llm-compressor's AWQ export in that format): matrices as qweight, qzeros and scales, packed along the outputs ("gemm").

qweight[i, o / 8] holds eight outputs of input i, qzeros[g, o / 8] their zero points; the weight is (q - zero) * scale. Within a word the
outputs stand in the order that AutoAWQ's CUDA kernel unpacks: 0, 2, 4, 6, 1, 3, 5, 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedModel
from .input_groups import DEFAULT_SIZE, group_size
from .packing import signed, word_columns
from .stored import INT4, Form, StoredIntegers, Tensors, whole

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
PARTS = ("qweight", "scales", "qzeros")
_BITS = 4


def check(config: Mapping[str, Any], source: str) -> None:
    """Raises UnsupportedModel for a format that is not read."""
    kind = str(config.get("version") or config.get("format") or "gemm").lower()
    bits = config.get("bits", config.get("w_bit", _BITS))
    if kind != "gemm" or bits != _BITS:
        raise UnsupportedModel(f"{source} names AWQ of {bits} bits in the format {kind!r} — export from AWQ of 4 bits in the format gemm")


def find(files: Tensors, config: Mapping[str, Any]) -> dict[str, AwqMatrix]:
    """Usual name -> matrix, for every module that has a qweight. Raises CheckpointError if one is incomplete."""
    names, found = set(files.names()), {}
    for name in sorted(names):
        if name.endswith(".qweight"):
            stem = name.removesuffix("qweight")
            tensors = tuple(stem + part for part in PARTS if stem + part in names)
            needed = PARTS if config.get("zero_point", True) else PARTS[:2]
            if missing := [part for part in needed if stem + part not in names]:
                raise CheckpointError(f"{files.path} has {name} without {', '.join(missing)} — it is incomplete, download it again")
            found[f"{stem}weight"] = AwqMatrix(files, stem, tensors, config.get("group_size", config.get("q_group_size", DEFAULT_SIZE)))
    return found


@dataclass(frozen=True)
class AwqMatrix:
    """One matrix. ``asked``: the config's group size. Without qzeros every zero is the middle of the range."""

    files: Tensors
    stem: str
    tensors: tuple[str, ...]
    asked: int | None

    def _part(self, part: str) -> np.ndarray:
        return whole(self.files.stored, self.stem + part)

    @cached_property
    def shape(self) -> tuple[int, int]:
        inputs, words = self.files.shape(f"{self.stem}qweight")
        return int(words) * 8, int(inputs)

    @cached_property
    def form(self) -> Form:
        outputs, inputs = self.shape
        scales, name = self.files.shape(f"{self.stem}scales"), self.stem.rstrip(".")
        groups, stored = scales[0], f"{self.stem}qzeros" in self.tensors
        if scales != (groups, outputs) or (stored and self.files.shape(f"{self.stem}qzeros") != (groups, outputs // 8)):
            raise CheckpointError(f"{name} has scales or zero points of another shape than its weight — it is damaged, download it again")
        zeros = stored and bool(self._zeros(0, outputs).any())
        return Form(INT4, group_size(inputs, groups, self.asked, name), zeros, self.files.stored_type(f"{self.stem}scales"))

    def _zeros(self, start: int, stop: int) -> np.ndarray:
        """int8 [rows, groups], counted from the middle of the range."""
        return np.ascontiguousarray(signed(word_columns(self._part("qzeros"), _BITS, start, stop, ORDER), _BITS).T)

    def rows(self, start: int, stop: int) -> StoredIntegers:
        values = signed(np.ascontiguousarray(word_columns(self._part("qweight"), _BITS, start, stop, ORDER).T), _BITS)
        scales = self._part("scales")[:, start:stop].astype(np.float32).T
        zeros = self._zeros(start, stop) if self.form.zero_points else None
        return StoredIntegers(values, np.ascontiguousarray(scales), zeros, self.form.block)
