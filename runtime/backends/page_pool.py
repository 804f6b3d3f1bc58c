"""Which pages of a paged cache are free. Running lanes take the lowest pages, so that a pass over all of them binds few others; the prefix
cache takes the highest."""

from __future__ import annotations

import numpy as np


class OutOfPages(Exception):
    """No page is free. The caller frees some and tries again."""


class PagePool:
    """Page numbers 0 to ``count`` - 1."""

    def __init__(self, count: int) -> None:
        self._free = np.ones(count, dtype=bool)

    @property
    def free(self) -> int:
        """Number of free pages."""
        return int(self._free.sum())

    @property
    def count(self) -> int:
        """Number of pages in all."""
        return len(self._free)

    def take(self, count: int, scattered: bool = False) -> list[int]:
        """The lowest ``count`` adjacent free pages, so that a pass over one lane binds no others. ``scattered``: else the lowest free ones.
        Raises OutOfPages."""
        taken = np.concatenate([[-1], np.flatnonzero(~self._free), [len(self._free)]])
        gaps = np.flatnonzero(np.diff(taken) > count)
        if len(gaps):
            first = int(taken[gaps[0]]) + 1
            return self._take(range(first, first + count))
        if scattered and self.free >= count:
            return self._take(np.flatnonzero(self._free)[:count].tolist())
        raise OutOfPages

    def take_lowest(self) -> int:
        """The lowest free page. Raises OutOfPages."""
        page = int(np.argmax(self._free))
        if not self._free[page]:
            raise OutOfPages
        return self._take([page])[0]

    def take_highest(self, count: int) -> list[int]:
        """The ``count`` highest free pages. Raises OutOfPages."""
        pages = np.flatnonzero(self._free)[::-1][:count].tolist()
        if len(pages) < count:
            raise OutOfPages
        return self._take(pages)

    def move(self, page: int, within: range, highest: bool) -> int | None:
        """Give ``page`` back for the lowest free page ``within``, or for the ``highest``. None if all of them are taken."""
        free = np.flatnonzero(self._free[within.start : within.stop])
        if not len(free):
            return None
        self._free[page] = True
        return self._take([within.start + int(free[-1 if highest else 0])])[0]

    def give_back(self, pages: list[int]) -> None:
        """Free ``pages``, and empty the list."""
        self._free[pages] = True
        pages.clear()

    def _take(self, pages: range | list[int]) -> list[int]:
        self._free[list(pages)] = False
        return list(pages)
