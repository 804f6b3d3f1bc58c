"""The prefix cache: what finished lanes leave behind, for requests whose prompts begin with the same tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ..backends.lane_cache import LaneCache, Pages
from ..backends.page_pool import OutOfPages
from ..decoding.target import common_prefix_length
from .draft import DraftLane
from .lane import Lane

_LEAST = 16  # tokens; less is computed as fast as it is copied


@dataclass(frozen=True, eq=False)
class Kept:
    """Tokens whose keys and values lie in ``pages`` of the target's cache. ``tenant``: whose they are. ``draft_length``: how many
    of the first of them lie in ``draft_pages`` of the draft's."""

    tokens: Sequence[int] = ()
    pages: list[int] = field(default_factory=list)
    draft_pages: list[int] = field(default_factory=list)
    draft_length: int = 0
    tenant: str | None = None

    def common(self, prompt: Sequence[int]) -> Kept:
        """What it has of the beginning of ``prompt``. Never all of it: the last token's scores are needed. A slot of the draft holds a
        token's features and the token after it, so n common tokens give n - 1 of its slots."""
        length = min(common_prefix_length(self.tokens, prompt), len(prompt) - 1)
        return replace(self, tokens=prompt[:length], draft_length=max(0, min(self.draft_length, length - 1)))


def kept_by(lane: Lane) -> Kept:
    """What a running lane's caches hold."""
    if lane.draft is None:
        return Kept(lane.tokens, lane.cache.pages, tenant=lane.request.tenant)
    return Kept(lane.tokens, lane.cache.pages, lane.draft.cache.pages, lane.draft.whole, lane.request.tenant)


class PrefixCache:
    """Keeps copies of finished lanes, the least recently used first, until their pages are needed."""

    def __init__(self, target: Pages, draft: Pages | None) -> None:
        self._target, self._draft = target, draft
        self._kept: list[Kept] = []

    def find(self, prompt: Sequence[int], running: Iterable[Lane], tenant: str | None) -> Kept:
        """The longest beginning of ``prompt`` in a finished or a running lane of the same tenant: its length, which a request is told,
        would tell what others asked and were answered."""
        best, source = Kept(), None
        for each in (*map(kept_by, running), *self._kept):
            found = each.common(prompt)
            if each.tenant == tenant and len(found.tokens) > max(len(best.tokens), _LEAST):
                best, source = found, each
        if source in self._kept:  # used last, so evicted last
            self._kept.remove(source)
            self._kept.append(source)
        return best

    def keep(self, lane: Lane) -> None:
        """Copy a lane's caches before it gives its pages back. Drops older entries that it continues, and as many others as it needs."""
        if lane.cache.length < _LEAST or lane.cache.length != len(lane.tokens):
            return
        tenant = lane.request.tenant
        for kept in [each for each in self._kept if each.tenant == tenant and list(each.tokens) == lane.tokens[: len(each.tokens)]]:
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
        self._kept.append(Kept(tuple(lane.tokens), pages, drafted, lane.draft.whole if lane.draft else 0, tenant))

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


def begin(cache: LaneCache, draft: DraftLane | None, prefix: Kept, slots: int, scattered: bool = False) -> None:
    """Give a new lane its pages, adjacent ones unless ``scattered``, with the slots of ``prefix``. Raises OutOfPages, and has taken nothing
    then.

    The features of tokens that are not in the draft's cache are gone. A few tokens are computed again for them; for more, the draft has a
    gap in its text.
    """
    length = len(prefix.tokens)
    if draft is not None and 0 < length - prefix.draft_length <= _LEAST:
        length = prefix.draft_length
    cache.begin(slots, prefix.pages, length, scattered)
    if draft is not None:
        try:
            draft.cache.begin(slots, prefix.draft_pages, prefix.draft_length, scattered)
        except OutOfPages:
            cache.free()
            raise
        draft.length, draft.whole = length, prefix.draft_length
