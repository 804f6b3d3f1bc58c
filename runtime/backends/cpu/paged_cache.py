"""The KV cache of many lanes in host memory, in pages: a lane's memory follows its own length, and none moves because another grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...manifest.graphs import PAGE_SLOTS
from ..page_pool import PagePool


class PagedCache:
    """Pages with keys and values [layers, pages, heads, PAGE_SLOTS, width] of one model."""

    page_slots = PAGE_SLOTS
    moves = True

    def __init__(self, layers: int, heads: int, width: int, dtype: np.dtype, pages: int) -> None:
        # np.zeros maps memory only when it is written: unused pages cost none.
        self._arrays = {kind: np.zeros((layers, pages, heads, PAGE_SLOTS, width), dtype) for kind in ("key", "value")}
        self.heads, self.pool = heads, PagePool(pages)

    def tensors(self, pages: range) -> dict[str, np.ndarray]:
        """Views [pages, heads, PAGE_SLOTS, width] of each layer, by the names past.LAYER.KIND."""
        return {
            f"past.{layer}.{kind}": view[pages.start : pages.stop]
            for kind, array in self._arrays.items()
            for layer, view in enumerate(array)
        }

    def pages_of(self, slots: int) -> int:
        return pages_of(slots)

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        for array in self._arrays.values():
            for source, target in zip(sources, targets, strict=True):
                array[:, target] = array[:, source]

    def copy_slots(self, sources: np.ndarray, targets: np.ndarray) -> None:
        (from_page, from_slot), (to_page, to_slot) = divmod(sources, PAGE_SLOTS), divmod(targets, PAGE_SLOTS)
        for array in self._arrays.values():
            for layer in array:
                layer[to_page, :, to_slot] = layer[from_page, :, from_slot]

    def clear(self, pages: Sequence[int]) -> None:
        for array in self._arrays.values():
            array[:, list(pages)] = 0


def pages_of(slots: int) -> int:
    """Pages that hold ``slots`` slots."""
    return -(-slots // PAGE_SLOTS)
