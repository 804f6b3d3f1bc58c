"""The prefix cache: what finished lanes leave behind, for requests whose prompts begin with the same tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..backends.cpu.page_pool import OutOfPages
from ..backends.cpu.paged_cache import LaneCache, PagedCache
from ..decoding.target import common_prefix_length
from .draft import DraftLane
from .lane import Lane

_LEAST = 16  # tokens; less is computed as fast as it is copied


@dataclass(frozen=True, eq=False)
class Kept:
    """The caches of a finished lane. ``draft_length``: slots of the draft's cache without a gap."""

    tokens: tuple[int, ...]
    pages: list[int]
    draft_pages: list[int]
    draft_length: int


@dataclass(frozen=True)
class Prefix:
    """The longest known beginning of a prompt: ``length`` tokens in ``pages`` of the target's cache, ``draft_length`` slots in
    ``draft_pages`` of the draft's."""

    length: int = 0
    pages: Sequence[int] = ()
    draft_pages: Sequence[int] = ()
    draft_length: int = 0


class PrefixCache:
    """Keeps finished lanes, the oldest first, until their pages are needed."""

    def __init__(self, target: PagedCache, draft: PagedCache | None) -> None:
        self._target, self._draft = target, draft
        self._kept: list[Kept] = []

    def find(self, prompt: Sequence[int], running: Iterable[Lane]) -> Prefix:
        """The longest beginning of ``prompt`` in a finished or a running lane. Never all of it: the last token's scores are needed."""
        best = Prefix()
        for lane in running:
            drafted = (lane.draft.cache.pages, lane.draft.whole) if lane.draft else ((), 0)
            best = _longer(best, prompt, lane.tokens, lane.cache.pages, *drafted)
        for kept in list(self._kept):
            found = _longer(best, prompt, kept.tokens, kept.pages, kept.draft_pages, kept.draft_length)
            if found is not best:  # used last, so evicted last
                best = found
                self._kept.remove(kept)
                self._kept.append(kept)
        return best

    def keep(self, lane: Lane) -> None:
        """Copy a lane's caches before it gives its pages back. Drops older entries that it continues, and as many others as it needs."""
        if lane.cache.length < _LEAST or lane.cache.length != len(lane.tokens):
            return
        for kept in [each for each in self._kept if list(each.tokens) == lane.tokens[: len(each.tokens)]]:
            self._drop(kept)
        while True:
            pages: list[int] = []
            try:
                pages = lane.cache.kept_copy(lane.cache.length)
                drafted = lane.draft.cache.kept_copy(lane.draft.whole) if lane.draft else []
                break
            except OutOfPages:
                self._target.pool.give_back(pages)
                if not self.evict():
                    return
        self._kept.append(Kept(tuple(lane.tokens), pages, drafted, lane.draft.whole if lane.draft else 0))

    def evict(self) -> bool:
        """Drop the entry that was used the longest time ago. Returns whether there was one."""
        if self._kept:
            self._drop(self._kept[0])
            return True
        return False

    def clear(self) -> None:
        """Drop everything."""
        while self.evict():
            pass

    def _drop(self, kept: Kept) -> None:
        self._kept.remove(kept)
        self._target.pool.give_back(kept.pages)
        if self._draft is not None:
            self._draft.pool.give_back(kept.draft_pages)


def _longer(best: Prefix, prompt: Sequence[int], tokens: Sequence[int], pages: Sequence[int], draft_pages: Sequence[int], drafted: int) -> Prefix:  # fmt: skip
    """The prefix that these tokens offer if it is longer than ``best``, else ``best``. A slot of the draft holds a token's features and
    the token after it, so n common tokens give n - 1 of its slots."""
    length = min(common_prefix_length(tokens, prompt), len(prompt) - 1)
    return Prefix(length, pages, draft_pages, max(0, min(drafted, length - 1))) if length > max(best.length, _LEAST) else best


def begin(cache: LaneCache, draft: DraftLane | None, prefix: Prefix, slots: int) -> None:
    """Give a new lane its pages, with the slots of ``prefix``. Raises OutOfPages, and has taken nothing then.

    The features of tokens that are not in the draft's cache are gone. A few tokens are computed again for them; for more, the draft has a
    gap in its text.
    """
    length = prefix.length
    if draft is not None and 0 < length - prefix.draft_length <= _LEAST:
        length = prefix.draft_length
    cache.begin(slots, prefix.pages, length)
    if draft is not None:
        try:
            draft.cache.begin(slots, prefix.draft_pages, prefix.draft_length)
        except OutOfPages:
            cache.free()
            raise
        draft.length, draft.whole = length, prefix.draft_length
