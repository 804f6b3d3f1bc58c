"""The KV cache of many lanes on a GPU. TensorRT writes consecutive slots of each batch row in place, so a page is a whole lane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...manifest.graphs import Graph
from ..base import dtype_of
from ..page_pool import PagePool
from .driver import Cuda
from .memory import DeviceBuffer, DeviceMemory


class DevicePages:
    """Pages with keys and values [layers, 2, pages, Hkv, page_slots, D] of one model, in one allocation."""

    moves = False  # a page is large, and what moving it would gain is not measured

    def __init__(self, cuda: Cuda, memory: DeviceMemory, pages: int, graph: Graph) -> None:
        caches = [tensor for name, tensor in graph.inputs.items() if name.endswith((".key", ".value"))]
        _, heads, _, width = (int(size) if isinstance(size, int) else 0 for size in caches[0].shape)
        slots, dtype = graph.page_slots, dtype_of(caches[0].dtype)
        self.page_slots, self.pool = slots, PagePool(pages)
        self._cuda, self._heads, self._tensors = cuda, heads, len(caches)
        self._row, self._page = width * dtype.itemsize, heads * slots * width * dtype.itemsize  # bytes
        self._buffer = memory.zeros(self._tensors * pages * heads * slots * width, dtype.name)

    def _address(self, tensor: int, page: int) -> int:
        return self._buffer.address + (tensor * self.pool.count + page) * self._page

    def buffers(self) -> dict[str, DeviceBuffer]:
        """The caches of a pass whose first page is ``page``, by the names that `names` gives them."""
        size, dtype = self._page // self._buffer.dtype.itemsize, self._buffer.dtype
        return {
            f"{page}.{index // 2}.{('key', 'value')[index % 2]}": DeviceBuffer(
                self._address(index, page), size * (self.pool.count - page), dtype
            )
            for page in range(self.pool.count)
            for index in range(self._tensors)
        }

    def names(self, page: int) -> dict[str, str]:
        """Buffers by the names of a graph's inputs and outputs, for a pass whose first page is ``page``."""
        layers = [f"{index // 2}.{('key', 'value')[index % 2]}" for index in range(self._tensors)]
        return {f"{side}.{layer}": f"{page}.{layer}" for layer in layers for side in ("past", "present")}

    def pages_of(self, slots: int) -> int:
        return min(slots, 1)

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            for tensor in range(self._tensors):
                self._cuda.copy(self._address(tensor, target), self._address(tensor, source), self._page)

    def copy_slots(self, sources: np.ndarray, targets: np.ndarray) -> None:
        for slot in zip(sources.tolist(), targets.tolist(), strict=True):  # copies run in order
            source, target = (self._address(0, each // self.page_slots) + each % self.page_slots * self._row for each in slot)
            rows = self._heads, self.page_slots * self._row
            self._cuda.copy_blocks(target, source, self._row, rows, (self._tensors, self.pool.count * self._page))

    def clear(self, pages: Sequence[int]) -> None:
        for page in pages:
            for tensor in range(self._tensors):
                self._cuda.clear(self._address(tensor, page), self._page)
