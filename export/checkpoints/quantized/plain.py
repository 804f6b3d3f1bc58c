"""Matrices whose quantized values are stored unpacked, as `weight` in int8 or float8 beside its scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ml_dtypes import float8_e4m3fn

from ...errors import CheckpointError
from .scale_grid import ScaleGrid, as_scales, scale_grid
from .stored import FP8, INT4, INT8, Form, StoredIntegers, Tensors


@dataclass(frozen=True)
class PlainMatrix:
    """One matrix. ``weight``, ``scale``, ``zero``: names of the tensors. ``blocks``: sizes of two-dimensional blocks that a config names;
    ``bits``: of integers; ``groups``: sizes of groups in a row that the config names, none if any may be."""

    files: Tensors
    weight: str
    scale: str
    zero: str | None
    tensors: tuple[str, ...]
    blocks: Sequence[int] | None = None
    bits: int = 8
    groups: tuple[int, ...] = ()

    @cached_property
    def shape(self) -> tuple[int, int]:
        shape = self.files.shape(self.weight)
        if len(shape) != 2:
            raise CheckpointError(f"{self.weight} has scales, but {len(shape)} dimensions — the checkpoint is damaged, download it again")
        return int(shape[0]), int(shape[1])

    @cached_property
    def _grid(self) -> ScaleGrid:
        return scale_grid(self.shape, self.files.shape(self.scale), self.blocks, self.weight, self.groups)

    @cached_property
    def form(self) -> Form:
        kind = FP8 if self.files.stored_type(self.weight) == float8_e4m3fn else INT4 if self.bits == 4 else INT8
        zeros = self.zero is not None and bool(self.files.stored(self.zero).astype(np.float32).any())
        stored = self.files.stored_type(self.scale)
        return Form(kind, self._grid.inputs, zeros, stored if stored.itemsize in (2, 4) else np.dtype(np.float32))

    def rows(self, start: int, stop: int) -> StoredIntegers:
        values = self.files.stored(self.weight, start, stop)
        scales = as_scales(self._grid.of_rows(self.files.stored(self.scale), start, stop))
        zeros = None
        if self.form.zero_points and self.zero:
            zeros = self._grid.of_rows(self.files.stored(self.zero), start, stop).astype(np.int8)
        return StoredIntegers(values, scales, zeros, self.form.block)
