"""The KV cache on a GPU. Committed rows move by strided copies, in the stream's order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..spanned_cache import SpannedCache
from .driver import Cuda
from .memory import DeviceBuffer, DeviceMemory


class DeviceKVCache(SpannedCache):
    """A Cache on a GPU: keys and values [layers, 2, Hkv, stride, D] in one allocation.

    ``static``: the heads of a tensor are always ``capacity`` slots apart, as TensorRT's graphs need it. Otherwise they are ``span`` slots
    apart at the front of the tensor, as in the CPU's graphs. Spans double, because every span needs its own CUDA graphs.
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
        super().__init__(shape[2], span_step)
        self._cuda, self._memory, self._static = cuda, memory, static
        self._layers, self._heads, _, self._head_dim = shape
        self._row = self._head_dim * dtype.itemsize  # bytes of one slot of one head
        per_head = self._layers * 2 * self.capacity * self._head_dim
        self._buffer = memory.zeros(per_head * self._heads, dtype.name)
        self._staging = None if static else memory.zeros(per_head, dtype.name)

    @property
    def _tensor_bytes(self) -> int:
        return self._heads * self.capacity * self._row

    def tensors(self) -> dict[str, DeviceBuffer]:
        """Buffers by the names of graph inputs and outputs. Engines update them in place."""
        size = self._tensor_bytes // self._buffer.dtype.itemsize
        buffers = {}
        for index in range(2 * self._layers):
            buffer = DeviceBuffer(self._buffer.address + index * self._tensor_bytes, size, self._buffer.dtype)
            for side in ("past", "present"):
                buffers[f"{side}.{index // 2}.{('key', 'value')[index % 2]}"] = buffer
        return buffers

    def span_for(self, slots: int) -> int:
        """The smallest of ``spans`` that holds ``slots``."""
        return next(span for span in self.spans() if span >= slots)

    def spans(self) -> list[int]:
        """All possible spans."""
        return doubling_spans(self._step, self.capacity)

    def _change_span(self, span: int) -> None:
        if self._staging is not None and self._length and span != self._span:
            self._move_heads(span, self._staging)
        self._span = span

    def _move_heads(self, span: int, staging: DeviceBuffer) -> None:
        """Move every head to its place in the new layout: the last head first when growing, the first when shrinking. Each goes through
        ``staging``, because its old and new place may overlap."""
        length, tensors = self._length * self._row, 2 * self._layers
        pitch, start, heads = self._tensor_bytes, self._buffer.address, range(1, self._heads)
        for head in heads if span < self._span else reversed(heads):
            for tensor in range(tensors):
                self._cuda.copy(staging.address + tensor * length, start + tensor * pitch + head * self._span * self._row, length)
            for tensor in range(tensors):
                self._cuda.copy(start + tensor * pitch + head * span * self._row, staging.address + tensor * length, length)

    def commit(self, path: Sequence[int]) -> None:
        """Commit the rows ``path`` of the last pass (ascending, starting with row 0): move them to follow the committed slots."""
        start = self._length
        for index, row in enumerate(path):
            if index != row:  # a target never overwrites a later source, and copies run in order
                for address, pitch, rows in self._strided_heads():
                    target, source = address + (start + index) * self._row, address + (start + row) * self._row
                    self._cuda.copy_rows(target, source, pitch, self._row, rows)
        self._length = start + len(path)

    def _clear(self) -> None:
        if self._span:
            for address, pitch, rows in self._strided_heads():
                self._cuda.clear_rows(address, pitch, self._span * self._row, rows)

    def _strided_heads(self) -> Iterator[tuple[int, int, int]]:
        """(address, pitch in bytes, rows): strided sets of heads that together are all heads. Each row starts with a head's slot 0."""
        if self._static:
            yield self._buffer.address, self.capacity * self._row, 2 * self._layers * self._heads
        else:
            for head in range(self._heads):
                yield self._buffer.address + head * self._span * self._row, self._tensor_bytes, 2 * self._layers

    def rows(self) -> np.ndarray:
        """The committed part, [layers, 2, 1, Hkv, length, D]; a copy."""
        stride = self.capacity if self._static else self._span
        whole = self._memory.read(self._buffer, (self._layers, 2, self._heads * self.capacity * self._head_dim))
        used = whole[..., : self._heads * stride * self._head_dim]
        return used.reshape(self._layers, 2, 1, self._heads, stride, self._head_dim)[..., : self._length, :]


def doubling_spans(step: int, capacity: int) -> list[int]:
    """``step`` slots, twice as many, and so on, up to ``capacity``."""
    spans = [min(step, capacity)]
    while spans[-1] < capacity:
        spans.append(min(2 * spans[-1], capacity))
    return spans
