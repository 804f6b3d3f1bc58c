"""Replicas and the queue before them: bounded, first come first served, the replica that knows most of the prompt first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from time import monotonic

from .errors import ApiError, shutting_down
from .replica import Replica, RunningRequest
from .settings import ServerSettings


class Pool:
    """Who runs, who waits, who must go away. All of it in the event loop's thread."""

    def __init__(self, replicas: Sequence[Replica], settings: ServerSettings) -> None:
        self.replicas = tuple(replicas)
        self.draining = False
        self._settings = settings
        self._free = list(replicas)
        self._waiting: deque[asyncio.Future[Replica]] = deque()
        self._inside = 0
        self._mean_seconds = 1.0  # of a request on a replica

    @property
    def waiting(self) -> int:
        return sum(not each.done() for each in self._waiting)

    @property
    def running(self) -> int:
        return sum(each.running is not None for each in self.replicas)

    @property
    def healthy(self) -> bool:
        """Every replica works, and requests are taken."""
        return not self.draining and all(each.healthy for each in self.replicas)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A request is inside from its admission until its client has all of the answer: at most one a replica and ``queue`` more are, so
        that neither a crowd nor slow readers fill the memory. Raises ApiError 429 and 503."""
        if self.draining:
            raise shutting_down()
        if self._inside >= len(self.replicas) + self._settings.queue:
            wait = ceil(self._mean_seconds * (self.waiting + 1) / len(self.replicas))
            raise ApiError(
                429,
                f"the server is full, {self.running} requests run and {self.waiting} wait — send the request again later",
                code="queue_full",
                outcome="queue_full",
                retry_after=min(max(wait, 1), 60),
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def replica(self, prompt: Sequence[int]) -> Replica:
        """A replica of one's own, by and by; ``run`` gives it back. Raises ApiError 503 when it takes too long or none is left."""
        if self.draining:
            raise shutting_down()
        if not any(each.healthy for each in self.replicas):
            raise ApiError(503, "every engine has failed — the server must be started again", code="unhealthy")
        if self._free:
            best = max(self._free, key=lambda each: each.shared(prompt))
            self._free.remove(best)
            return best
        turn: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        taken = False
        try:
            async with asyncio.timeout(self._settings.queue_seconds):
                replica = await turn
            taken = True
            return replica
        except TimeoutError:
            message = f"no engine became free within {self._settings.queue_seconds:g} s — send the request again later"
            wait = min(max(ceil(self._mean_seconds), 1), 60)
            raise ApiError(503, message, code="queue_timeout", outcome="queue_timeout", retry_after=wait) from None
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)
            if not taken and turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give_back(turn.result())  # it came in the same moment as the end of the waiting

    def run(self, replica: Replica, answer: RunningRequest) -> None:
        """Start ``answer``; its replica comes back by itself when it has ended, whether or not anyone reads it."""
        began = monotonic()

        def free() -> None:
            self._mean_seconds += 0.1 * (monotonic() - began - self._mean_seconds)
            self.give_back(replica)

        replica.start(answer, free)

    def give_back(self, replica: Replica) -> None:
        """To the next in the queue, if it is still good."""
        if not replica.healthy:
            if not any(each.healthy for each in self.replicas):
                self._refuse(lambda: ApiError(503, "every engine has failed — the server must be started again", code="unhealthy"))
            return
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(replica)
                return
        self._free.append(replica)

    def drain(self) -> None:
        """Take nothing more. What waits is told so, what runs goes on."""
        self.draining = True
        self._refuse(shutting_down)

    def cut(self) -> None:
        """End what runs after the current round."""
        for replica in self.replicas:
            if replica.running is not None:
                replica.running.cancel()

    async def close(self, seconds: float) -> bool:
        """End threads and close the Decoders; False if one of them does not end."""
        self.drain()
        self.cut()
        ended = [await asyncio.to_thread(each.stop, seconds) for each in self.replicas]
        for replica, over in zip(self.replicas, ended, strict=True):
            if over:
                await asyncio.to_thread(replica.decoder.close)
        return all(ended)

    def _refuse(self, error: Callable[[], ApiError]) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error())
