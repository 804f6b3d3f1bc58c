"""The KV cache of one model: a single allocation, and the only place that knows how much of it is committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .base import Buffer


@dataclass(frozen=True)
class CacheLayout:
    """How a graph has a layer's keys or values: [parts, heads, span, width]. The CPU's quantized graphs have a head's values in
    several parts, all others in one."""

    parts: int
    heads: int
    width: int
    dtype: np.dtype

    @property
    def pieces(self) -> int:
        """Of [span, width] each, one behind the other."""
        return self.parts * self.heads


class Cache(Protocol):
    """Keys and values of one model; slots below ``length`` are committed, the engines see ``span`` of ``capacity``."""

    @property
    def length(self) -> int:
        """Committed slots."""

    @property
    def span(self) -> int:
        """Slots that a pass may touch now."""

    @property
    def capacity(self) -> int:
        """Most slots."""

    def tensors(self) -> Mapping[str, Buffer]:
        """Graph input and output names -> where they lie: engines update them in place."""

    def fitting(self, slots: int) -> int:
        """The span to reserve when ``slots`` are needed."""

    def spans(self) -> Sequence[int]:
        """Spans to be ready for before the first request: on a device all there will be, as each has a recording of its own."""

    def reserve(self, span: int) -> None:
        """Make room for ``span`` slots, at least as many as before; committed rows keep their values."""

    def commit(self, path: Sequence[int]) -> None:
        """Keep the rows ``path`` of the last pass (ascending, starting at row 0), moved down to follow the committed slots."""

    def truncate(self, length: int) -> None:
        """Forget everything from slot ``length`` on and make do with as few slots as ``fitting`` says. Absolute, hence safe to repeat."""

    def rows(self) -> np.ndarray:
        """The committed part, [layers, 2, 1, Hkv, length, D]; a view or a copy."""


class KVCache:
    """Keys and values of ``layers`` layers; slots below ``length`` are committed.

    Every tensor owns room for ``capacity`` slots and uses the front of it as [parts, heads, span, width], laid out for the ``span`` slots
    that a pass may touch. So attention reads the used part as a whole, without a Slice and its copy, which took 5 % of a pass
    (docs/decisions.md, "Runtime").
    """

    def __init__(self, layers: int, keys: CacheLayout, values: CacheLayout, capacity: int, span_step: int = 64) -> None:
        self._forms = {"key": keys, "value": values}
        # np.zeros takes pages only when they are written: unused capacity costs no memory.
        self._buffers = {kind: np.zeros((layers, form.pieces * capacity * form.width), form.dtype) for kind, form in self._forms.items()}
        self.capacity, self._step = capacity, span_step
        self._length = self._span = 0

    @property
    def length(self) -> int:
        """Committed slots."""
        return self._length

    @property
    def span(self) -> int:
        """Slots the tensors are laid out for."""
        return self._span

    def tensors(self) -> dict[str, np.ndarray]:
        """Graph input and output names -> the same flat room, of which a call uses the front: engines update it in place."""
        rooms = ((kind, layer, room) for kind, buffer in self._buffers.items() for layer, room in enumerate(buffer))
        return {f"{side}.{layer}.{kind}": room for kind, layer, room in rooms for side in ("past", "present")}

    def fitting(self, slots: int) -> int:
        """Steps grow with the length, so that laying the cache out anew stays a small share of the work."""
        step = self._step * max(1, slots // (8 * self._step))
        return min(-(-slots // step) * step, self.capacity)

    def spans(self) -> Sequence[int]:
        """The first."""
        return [min(self._step, self.capacity)]

    def reserve(self, span: int) -> None:
        """Lay the tensors out for ``span`` slots, at least as many as before; committed rows keep their values."""
        if not self._span <= span <= self.capacity:
            raise ValueError(f"cannot lay {self._span} slots out for {span} of {self.capacity}")
        self._lay_out(span)

    def _lay_out(self, span: int) -> None:
        """Upwards the last piece first, downwards the first: nothing is overwritten before it moved. Piece by piece, because of pieces in a
        row numpy needs no copy between: one of all layers left a hole in the heap (draws.py)."""
        for kind, form in self._forms.items():
            before, after, size = self._span * form.width, span * form.width, self._length * form.width
            pieces = range(1, form.pieces) if span < self._span else range(form.pieces - 1, 0, -1)
            for room in self._buffers[kind]:
                for piece in pieces:
                    room[piece * after : piece * after + size] = room[piece * before : piece * before + size]
        self._span = span

    def _laid_out(self, span: int) -> list[np.ndarray]:
        """Keys and values, each [layers, pieces, span, width]; views."""
        forms = ((self._buffers[kind], form.pieces, form.width) for kind, form in self._forms.items())
        return [room[:, : pieces * span * width].reshape(len(room), pieces, span, width) for room, pieces, width in forms]

    def commit(self, path: Sequence[int]) -> None:
        """Keep the rows ``path`` of the last pass (ascending, starting at row 0), moved down to follow the committed slots."""
        start, moved = self._length, 0
        while moved < len(path) and path[moved] == moved:
            moved += 1
        if moved < len(path):
            for rows in self._laid_out(self._span):
                rows[:, :, start + moved : start + len(path)] = rows[:, :, [start + row for row in path[moved:]]]
        self._length = start + len(path)

    def truncate(self, length: int) -> None:
        """Forget everything from slot ``length`` on. Absolute, hence safe to repeat. What is left is laid out for as few slots as it needs:
        a pass reads all that there are."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate {self._length} committed slots to {length}")
        self._length = length
        if length == 0:
            # Hidden slots count with weight zero, and zero times NaN is NaN: what a failed pass left behind must not stay.
            for rows in self._laid_out(self._span):
                rows[:] = 0
            self._span = 0
        elif (span := self.fitting(length)) < self._span:
            self._lay_out(span)

    def rows(self) -> np.ndarray:
        """The committed part, [layers, 2, 1, Hkv, length, D]; a copy."""
        keys, values = (rows[:, :, : self._length] for rows in self._laid_out(self._span))
        layers, heads, length, _ = keys.shape
        parts = values.reshape(layers, -1, heads, length, values.shape[-1])
        whole = parts.transpose(0, 2, 3, 1, 4).reshape(keys.shape)
        return np.stack([keys[:, None], whole[:, None]], axis=1)
