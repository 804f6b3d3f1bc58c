"""Scales of plain (not packed) matrices: one for all, one a row, one a group of inputs, or one a block of rows and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import CheckpointError


@dataclass(frozen=True)
class ScaleGrid:
    """``rows`` and ``inputs`` share a scale; the last of either may be fewer. ``count``: scales of a row."""

    rows: int
    inputs: int
    count: int

    def of_rows(self, grid: np.ndarray, start: int, stop: int) -> np.ndarray:
        """What belongs to rows [start, stop) of a mapped tensor with one entry a block, [stop - start, count]."""
        flat = grid.reshape(-1, self.count)
        first = start // self.rows
        wanted = np.array(flat[first : -(-stop // self.rows)])
        return np.repeat(wanted, self.rows, axis=0)[start - first * self.rows : stop - first * self.rows] if self.rows > 1 else wanted


def scale_grid(
    shape: Sequence[int], scales: Sequence[int], block: Sequence[int] | None, name: str, groups: Sequence[int] = ()
) -> ScaleGrid:
    """The grid of a matrix [outputs, inputs] from its scales' shape. ``block``: rows and inputs of a block, as the config says; ``groups``:
    the sizes of groups in a row that it names, none if any may be. Raises CheckpointError if these contradict each other: sizes are not
    guessed, because a shorter last block or group has the same number of scales."""
    outputs, inputs = shape
    sizes = tuple(scales)
    if int(np.prod(sizes, dtype=np.int64)) == 1:
        return ScaleGrid(outputs, inputs, 1)
    rows, count = sizes if len(sizes) == 2 else (sizes[0], 1) if len(sizes) == 1 else (0, 0)
    if block and (rows, count) == (-(-outputs // block[0]), -(-inputs // block[1])):
        return ScaleGrid(block[0], block[1], count)
    fits = rows == outputs and count == 1
    if not fits and count > 0 and not block:  # groups in every row
        fits = rows == outputs and inputs % count == 0 and (not groups or inputs // count in groups)
    if not fits:
        raise CheckpointError(f"{name} has scales {list(sizes)} for a weight {list(shape)} — the checkpoint is damaged, download it again")
    return ScaleGrid(1, inputs // count, count)


def as_scales(stored: np.ndarray) -> np.ndarray:
    """Scales as float32. A byte is an exponent of two, as in the MX formats (ue8m0)."""
    if stored.dtype == np.uint8:
        return np.ldexp(np.float32(1), stored.astype(np.int32) - 127).astype(np.float32)
    return stored.astype(np.float32)
