"""The KV cache on a GPU, where committed rows move by strided copies in the stream's order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .driver import Cuda
from .memory import DeviceBuffer, DeviceMemory


class DeviceKVCache:
    """Keys and values [layers, 2, Hkv, stride, D] in one allocation; slots below ``length`` are committed.

    ``static``: every head owns ``capacity`` slots for ever (TensorRT's form); otherwise the heads of a tensor lie ``span`` slots apart at
    its front (the form of the CPU's graphs). Spans double, because every span is a CUDA graph of its own.
    """

    def __init__(
        self,
        cuda: Cuda,
        memory: DeviceMemory,
        shape: tuple[int, int, int, int],
        dtype: np.dtype,
        span_step: int,
        *,
        static: bool,
    ) -> None:
        """``shape``: layers, kv_heads, capacity, head_dim."""
        self._cuda, self._memory, self._static, self._step = cuda, memory, static, span_step
        self._layers, self._heads, self.capacity, self._head_dim = shape
        self._row = self._head_dim * dtype.itemsize  # bytes of a slot
        slots = self._layers * 2 * self.capacity * self._head_dim
        self._buffer = memory.zeros(slots * self._heads, dtype.name)
        self._passage = None if static else memory.zeros(slots, dtype.name)
        self._length = self._span = 0

    @property
    def length(self) -> int:
        """Committed slots."""
        return self._length

    @property
    def span(self) -> int:
        """Slots that a pass may touch now."""
        return self._span

    @property
    def _room(self) -> int:
        """Bytes of one tensor."""
        return self._heads * self.capacity * self._row

    def tensors(self) -> dict[str, DeviceBuffer]:
        """Graph input and output names -> where they lie: engines update them in place."""
        size = self._room // self._buffer.dtype.itemsize
        found = {}
        for index in range(2 * self._layers):
            part = DeviceBuffer(self._buffer.address + index * self._room, size, self._buffer.dtype)
            for side in ("past", "present"):
                found[f"{side}.{index // 2}.{('key', 'value')[index % 2]}"] = part
        return found

    def fitting(self, slots: int) -> int:
        """The first of ``spans`` that holds them."""
        return next(span for span in self.spans() if span >= slots)

    def spans(self) -> list[int]:
        """Every span there will be."""
        spans = [min(self._step, self.capacity)]
        while spans[-1] < self.capacity:
            spans.append(min(2 * spans[-1], self.capacity))
        return spans

    def reserve(self, span: int) -> None:
        """Make room for ``span`` slots, at least as many as before; committed rows keep their values."""
        if not self._span <= span <= self.capacity:
            raise ValueError(f"cannot lay {self._span} slots out for {span} of {self.capacity}")
        if self._passage is not None and self._length and span > self._span:
            self._lay_out(span, self._passage)
        self._span = span

    def _lay_out(self, span: int, passage: DeviceBuffer) -> None:
        """Heads move apart, the last first, or together, the first first; through another buffer, because source and target may overlap."""
        length, rows = self._length * self._row, 2 * self._layers
        pitch, start, heads = self._room, self._buffer.address, range(1, self._heads)
        for head in heads if span < self._span else reversed(heads):
            for layer in range(rows):
                place = passage.address + layer * length
                self._cuda.copy(place, start + layer * pitch + head * self._span * self._row, length)
            for layer in range(rows):
                place = passage.address + layer * length
                self._cuda.copy(start + layer * pitch + head * span * self._row, place, length)

    def commit(self, path: Sequence[int]) -> None:
        """Keep the rows ``path`` of the last pass (ascending, starting at row 0), moved down to follow the committed slots."""
        start = self._length
        for place, row in enumerate(path):
            if place != row:  # targets never reach a later source, and copies keep their order
                for address, pitch, rows in self._pieces():
                    target, source = address + (start + place) * self._row, address + (start + row) * self._row
                    self._cuda.copy_rows(target, source, pitch, self._row, rows)
        self._length = start + len(path)

    def truncate(self, length: int) -> None:
        """Forget everything from slot ``length`` on and go back to the span that the rest needs. Absolute, hence safe to repeat."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate {self._length} committed slots to {length}")
        self._length = length
        if length == 0:
            # Hidden slots count with weight zero, and zero times NaN is NaN: what a failed pass left behind must not stay.
            if self._span:
                for address, pitch, rows in self._pieces():
                    self._cuda.clear_rows(address, pitch, self._span * self._row, rows)
            self._span = 0
        elif (span := self.fitting(length)) < self._span:
            if self._passage is not None:
                self._lay_out(span, self._passage)
            self._span = span

    def _pieces(self) -> Iterator[tuple[int, int, int]]:
        """(address, pitch in bytes, rows): strided sets that together hold slot 0 of every head."""
        if self._static:
            yield self._buffer.address, self.capacity * self._row, 2 * self._layers * self._heads
        else:
            for head in range(self._heads):
                yield self._buffer.address + head * self._span * self._row, self._room, 2 * self._layers

    def rows(self) -> np.ndarray:
        """The committed part, [layers, 2, 1, Hkv, length, D]; a copy, for tests."""
        stride = self.capacity if self._static else self._span
        whole = self._memory.read(self._buffer, (self._layers, 2, self._heads * self.capacity * self._head_dim))
        used = whole[..., : self._heads * stride * self._head_dim]
        return used.reshape(self._layers, 2, 1, self._heads, stride, self._head_dim)[..., : self._length, :]
