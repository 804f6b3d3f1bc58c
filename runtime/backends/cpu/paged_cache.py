"""The KV cache of many lanes in host memory, in pages: a lane's memory follows its own length, and none moves because another grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...manifest.graphs import PAGE_SLOTS
from .page_pool import PagePool


class PagedCache:
    """Keys and values [layers, pages, heads, PAGE_SLOTS, width] of one model. A slot's number in the cache is page * PAGE_SLOTS + its place
    in the page."""

    def __init__(self, layers: int, heads: int, width: int, dtype: np.dtype, pages: int) -> None:
        # np.zeros maps memory only when it is written: unused pages cost none.
        self._arrays = {kind: np.zeros((layers, pages, heads, PAGE_SLOTS, width), dtype) for kind in ("key", "value")}
        self.heads, self.pool = heads, PagePool(pages)
        self.page_bytes = 2 * layers * heads * PAGE_SLOTS * width * dtype.itemsize

    def tensors(self, pages: range) -> dict[str, np.ndarray]:
        """Views [pages, heads, PAGE_SLOTS, width] of each layer, by the names past.LAYER.KIND."""
        return {
            f"past.{layer}.{kind}": view[pages.start : pages.stop]
            for kind, array in self._arrays.items()
            for layer, view in enumerate(array)
        }

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole pages, one after the other."""
        for array in self._arrays.values():
            for source, target in zip(sources, targets, strict=True):
                array[:, target] = array[:, source]

    def copy_slots(self, sources: np.ndarray, targets: np.ndarray) -> None:
        """Copy slots, all at the same time: no target is written before all sources were read."""
        (from_page, from_slot), (to_page, to_slot) = divmod(sources, PAGE_SLOTS), divmod(targets, PAGE_SLOTS)
        for array in self._arrays.values():
            for layer in array:
                layer[to_page, :, to_slot] = layer[from_page, :, from_slot]

    def clear(self, pages: Sequence[int]) -> None:
        """Set pages to zero. Masked slots have weight zero, but zero times NaN is NaN."""
        for array in self._arrays.values():
            array[:, list(pages)] = 0


class LaneCache:
    """One lane's part of a PagedCache. ``length``: committed slots."""

    def __init__(self, cache: PagedCache) -> None:
        self._cache = cache
        self.pages: list[int] = []
        self.length = 0

    def begin(self, slots: int, shared: Sequence[int] = (), length: int = 0) -> None:
        """Take adjacent pages for ``slots`` slots, and copy the first ``length`` slots from the pages ``shared``. Raises OutOfPages, and
        has taken nothing then."""
        assert not self.pages
        self.pages = self._cache.pool.take_adjacent(pages_of(max(slots, length)))
        count = pages_of(length)
        self._cache.copy_pages(shared[:count], self.pages[:count])
        self.length = length

    def reserve(self, slots: int) -> None:
        """Take pages until there are at least ``slots`` slots. Raises OutOfPages, and keeps what it has then."""
        while len(self.pages) * PAGE_SLOTS < slots:
            self.pages.append(self._cache.pool.take_lowest())

    def slot_numbers(self, slots: np.ndarray) -> np.ndarray:
        """The numbers in the cache of this lane's ``slots``."""
        numbers: np.ndarray = np.asarray(self.pages)[slots // PAGE_SLOTS] * PAGE_SLOTS + slots % PAGE_SLOTS
        return numbers

    def kept_copy(self, length: int) -> list[int]:
        """A copy of the first ``length`` slots in pages for the prefix cache. Raises OutOfPages."""
        pages = self._cache.pool.take_highest(pages_of(length))
        self._cache.copy_pages(self.pages[: len(pages)], pages)
        return pages

    def free(self, clear: bool = False) -> None:
        """Give all pages back. ``clear``: they may hold numbers that are not finite."""
        if clear and self.pages:
            self._cache.clear(self.pages)
        self._cache.pool.give_back(self.pages)
        self.length = 0


def pages_of(slots: int) -> int:
    """Pages that hold ``slots`` slots."""
    return -(-slots // PAGE_SLOTS)
