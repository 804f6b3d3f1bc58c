"""The caches of several lanes: pages of slots, and which of them each lane has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..manifest.graphs import Tensor
from .page_pool import PagePool


class Pages(Protocol):
    """Keys and values of one model, in pages of ``page_slots`` slots. A slot's number is page * page_slots + its place in the page.
    ``pool``: which pages are free. ``moves``: whether pages of running lanes may move."""

    page_slots: int
    pool: PagePool
    moves: bool

    def pages_of(self, slots: int) -> int:
        """Pages that hold ``slots`` slots of a lane."""

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole pages, one after the other."""

    def copy_slots(self, sources: np.ndarray, targets: np.ndarray) -> None:
        """Copy slots. No target is the source of a later copy."""

    def clear(self, pages: Sequence[int]) -> None:
        """Set pages to zero. Masked slots have weight zero, but zero times NaN is NaN."""


class LaneCache:
    """One lane's part of ``cache``. ``length``: committed slots."""

    def __init__(self, cache: Pages) -> None:
        self._cache = cache
        self.pages: list[int] = []
        self.length = 0

    def begin(self, slots: int, shared: Sequence[int] = (), length: int = 0, scattered: bool = False) -> None:
        """Take pages for ``slots`` slots, adjacent ones unless ``scattered``, and copy the first ``length`` slots from the pages
        ``shared``. Raises OutOfPages, and has taken nothing then."""
        assert not self.pages
        self.pages = self._cache.pool.take(self._cache.pages_of(max(slots, length)), scattered)
        count = self._cache.pages_of(length)
        self._cache.copy_pages(shared[:count], self.pages[:count])
        self.length = length

    def reserve(self, slots: int) -> None:
        """Take pages until there are at least ``slots`` slots. Raises OutOfPages, and keeps what it has then."""
        while len(self.pages) < self._cache.pages_of(slots):
            self.pages.append(self._cache.pool.take_lowest())

    @property
    def room(self) -> int:
        """Slots of its pages that are not committed."""
        return len(self.pages) * self._cache.page_slots - self.length

    def slot_numbers(self, slots: np.ndarray) -> np.ndarray:
        """The numbers in the cache of this lane's ``slots``."""
        size = self._cache.page_slots
        numbers: np.ndarray = np.asarray(self.pages)[slots // size] * size + slots % size
        return numbers

    def kept_copy(self, length: int) -> list[int]:
        """A copy of the first ``length`` slots in pages for the prefix cache. Raises OutOfPages."""
        pages = self._cache.pool.take_highest(self._cache.pages_of(length))
        self._cache.copy_pages(self.pages[: len(pages)], pages)
        return pages

    def free(self, clear: bool = False) -> None:
        """Give all pages back. ``clear``: they may hold numbers that are not finite."""
        if clear and self.pages:
            self._cache.clear(self.pages)
        self._cache.pool.give_back(self.pages)
        self.length = 0


def close_gap(lanes: Sequence[LaneCache]) -> None:
    """Move the first or the last page of the ``lanes`` into a gap between their pages, whichever leaves fewer pages between first and last.
    A pass sees all of those, and one that no lane has takes it as long as any other."""
    pages = sorted(page for lane in lanes for page in lane.pages)
    if not pages or pages[-1] - pages[0] < len(pages):
        return
    cache, last = lanes[0]._cache, pages[-1] - pages[-2] >= pages[1] - pages[0]
    source = pages[-1 if last else 0]
    target = cache.pool.move(source, range(pages[0], pages[-1]), highest=not last)
    if target is not None:
        cache.copy_pages([source], [target])
        own = next(lane.pages for lane in lanes if source in lane.pages)
        own[own.index(source)] = target


@dataclass(frozen=True)
class LaneRows:
    """The rows of one lane in a pass.

    ``tokens``, ``positions``: int64 [n]. Row j's key and value go to slot ``start`` + j. It attends to the last ``window`` slots before
    ``past`` (None: to all of them), and to slot ``past`` + i where ``mask`` [n, w] has row j, column i. ``heads``: the rows that get
    scores.
    """

    cache: LaneCache
    tokens: np.ndarray
    positions: np.ndarray
    start: int
    past: int
    mask: np.ndarray
    heads: range
    window: int | None = None

    def __len__(self) -> int:
        return len(self.tokens)


class LanesEngine(Protocol):
    """A loaded graph with lanes. ``takes_chunks``: whether the last lane of a pass may be a chunk of a prompt, which does not slow the
    attention of the others."""

    takes_chunks: bool

    def run(
        self, lanes: Sequence[LaneRows], hidden: np.ndarray | None = None, width: int = 0, chunk_last: bool = False
    ) -> Sequence[Mapping[str, np.ndarray]]:
        """One pass; what it gives each lane, valid until the next: rows of ``lanes`` in features and next_hidden, ``heads`` in all others.
        More rows or candidates may follow those that were asked for. ``hidden`` [N, H], ``width``: a draft's inputs for all rows, and its
        candidates for each. ``chunk_last``: the last of several lanes is a chunk. Raises EngineFailure."""


def head_rows(lanes: Sequence[LaneRows]) -> np.ndarray:
    """The rows of a pass over ``lanes`` that get scores, int64 [r]."""
    starts = np.cumsum([0, *map(len, lanes)])
    return np.concatenate([start + np.asarray(lane.heads) for start, lane in zip(starts, lanes, strict=False)])


def row_axis(tensor: Tensor) -> tuple[int, str]:
    """Which dimension of an output holds rows: its place, and its name: "N" all rows, "r" those that get scores."""
    return next((axis, dim) for axis, dim in enumerate(tensor.shape) if isinstance(dim, str) and dim in "Nr")


def shares(lanes: Sequence[LaneRows]) -> list[dict[str, slice]]:
    """Each lane's part of a pass's rows, by the names of `row_axis`."""
    rows, heads = np.cumsum([0, *map(len, lanes)]).tolist(), np.cumsum([0, *(len(lane.heads) for lane in lanes)]).tolist()
    return [{"N": slice(*rows[at : at + 2]), "r": slice(*heads[at : at + 2])} for at in range(len(lanes))]
