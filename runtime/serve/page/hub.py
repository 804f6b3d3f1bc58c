"""Passes cycles from the threads that decode to those who watch. While nobody does, no Decoder has a listener."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter

from ...decoding.cycle import CycleEvent
from ..admission.pool import Pool
from ..errors import ApiError
from ..replica import Replica

MAX_WATCHERS = 8
MAX_WAITING = 512
"""Cycles of one replica that wait for one watcher. Further ones are dropped and counted."""


class Watcher:
    """One reader of /events. ``user``: its requests have this in the body's field of the same name. ``dropped``: cycles so far."""

    def __init__(self, user: str | None, replicas: int) -> None:
        self.user = user
        self._waiting: Sequence[deque[tuple[float, CycleEvent]]] = [deque() for _ in range(replicas)]
        self._dropped = [0] * replicas  # each is written by one thread: the one that decodes for this replica

    @property
    def dropped(self) -> int:
        return sum(self._dropped)

    def put(self, replica: int, ended: float, cycle: CycleEvent) -> None:
        """Keep a cycle, or count it as dropped. Never blocks."""
        if len(self._waiting[replica]) < MAX_WAITING:
            self._waiting[replica].append((ended, cycle))
        else:
            self._dropped[replica] += 1

    def take(self) -> list[tuple[int, float, CycleEvent]]:
        """The cycles since the last call: replica, when it ended by the clock perf_counter, cycle."""
        return [(at, *waiting.popleft()) for at, waiting in enumerate(self._waiting) for _ in range(len(waiting))]


class Hub:
    """The watchers of one server. For the event loop's thread."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._watchers: tuple[Watcher, ...] = ()  # replaced, never changed: other threads iterate over it
        pool.on_replace = self._replaced

    @contextmanager
    def watching(self, user: str | None) -> Iterator[Watcher]:
        """A Watcher that gets all cycles inside the block. Raises ApiError if there are too many."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise ApiError(429, f"{MAX_WATCHERS} pages watch already — close one of them", code="too_many_watchers", retry_after=10)
        watcher = Watcher(user, len(self.pool.replicas))
        self._set((*self._watchers, watcher))
        try:
            yield watcher
        finally:
            self._set(tuple(each for each in self._watchers if each is not watcher))

    def _replaced(self, leaving: Sequence[Replica]) -> None:
        for replica in leaving:
            replica.decoder.listen(None)
        self._set(self._watchers)

    def _set(self, watchers: tuple[Watcher, ...]) -> None:
        self._watchers = watchers
        for at, replica in enumerate(self.pool.replicas):
            replica.decoder.listen(partial(self._heard, at) if watchers else None)

    def _heard(self, replica: int, cycle: CycleEvent) -> None:
        ended = perf_counter()
        for watcher in self._watchers:
            watcher.put(replica, ended, cycle)
