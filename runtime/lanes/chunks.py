"""How many rows of a prompt are read at a time beside running lanes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from policy import LanesLatency

from .pace import Pace

_LEAST_CHUNK = 32  # rows
_CHUNK_ROUNDS = 1.5  # the chunk of a prompt may take as long as this many rounds of the running lanes, unless other prompts wait too
_MEMORY = 0.97  # weight of the past in every sum


@dataclass
class ChunkSeconds:
    """Seconds of a chunk's pass as a line over its rows: least squares over the chunks so far, older ones counting less. ``model``: used
    before the first chunks, which outweigh it."""

    model: LanesLatency
    sums: np.ndarray = field(init=False)  # of 1, rows, rows**2, seconds, rows * seconds

    def __post_init__(self) -> None:
        self.sums = np.zeros(5)
        for rows in (1, 4, 16):
            self.sums += 1e-3 * _terms(rows, self.model.verify(rows, 1, 0) * 0.01)

    def observe(self, rows: int, seconds: float) -> None:
        """Learn what a chunk of a prompt took."""
        self.sums = _MEMORY * self.sums + _terms(rows, seconds)

    def next_rows(self, most: int, pace: Pace, alone: bool, takes_chunks: bool) -> int:
        """How many rows of a prompt to read now, at most ``most``. ``alone``: whether lanes decode and only this prompt waits. Then their
        next token may wait for it no longer than _CHUNK_ROUNDS more rounds; ``takes_chunks``: the pass reads it that gives this token."""
        if not alone or not pace.round_seconds:
            return most
        longest = self.rows(_CHUNK_ROUNDS * pace.round_seconds)
        if takes_chunks:
            longest = self.rows((1 + _CHUNK_ROUNDS) * pace.round_seconds) - round(pace.round_rows)
        return min(most, max(_LEAST_CHUNK, longest))

    def rows(self, seconds: float) -> int:
        """How many rows of a prompt take so long in a pass of their own."""
        ones, rows, squares, total, products = self.sums
        variance = ones * squares - rows * rows
        slope = max(0.0, (ones * products - rows * total) / variance) if variance > 1e-9 * squares * ones else 0.0
        whole = max(0.0, (total - slope * rows) / ones)
        return int(min(max(0.0, seconds - whole) / max(slope, 1e-6), 1e6))


def _terms(rows: int, seconds: float) -> np.ndarray:
    return np.array([1.0, rows, rows * rows, seconds, rows * seconds])
