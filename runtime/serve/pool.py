"""Replicas and their queue: bounded, first come first served; a request goes to the free replica that caches most of its prompt."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from time import monotonic

from .errors import ApiError, queue_timeout, shutting_down
from .replica import Replica, RunningRequest
from .settings import ServerSettings


class Pool:
    """Decides which requests run, wait or are refused. All methods are called in the event loop's thread."""

    def __init__(self, replicas: Sequence[Replica], settings: ServerSettings) -> None:
        self.replicas = tuple(replicas)
        self.draining = False
        self._settings = settings
        self._free = list(replicas)
        self._waiting: deque[asyncio.Future[Replica]] = deque()
        self._admitted = 0
        self._mean_seconds = 1.0  # of a request on a replica, as a moving average

    @property
    def waiting(self) -> int:
        return sum(not each.done() for each in self._waiting)

    @property
    def running(self) -> int:
        return sum(each.running is not None for each in self.replicas)

    @property
    def healthy(self) -> bool:
        """Requests are accepted and every replica works."""
        return not self.draining and all(each.healthy for each in self.replicas)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count a request from its admission until its client has the whole answer.

        At most one request per replica and ``queue`` more are admitted, so neither many clients nor slow ones can fill the memory. Raises
        ApiError: 429 when the server is full, 503 when it is stopping.
        """
        if self.draining:
            raise shutting_down()
        if self._admitted >= len(self.replicas) + self._settings.queue:
            raise ApiError(
                429,
                f"the server is full, {self.running} requests run and {self.waiting} wait — send the request again later",
                code="queue_full",
                outcome="queue_full",
                retry_after=_retry_after(self._mean_seconds * (self.waiting + 1) / len(self.replicas)),
            )
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def acquire(self, prompt: Sequence[int]) -> Replica:
        """Wait for a free replica; ``run`` releases it. Raises ApiError 503 when it takes too long or no replica works any more."""
        if self.draining:
            raise shutting_down()
        if not any(each.healthy for each in self.replicas):
            raise _all_failed()
        if self._free:
            best = max(self._free, key=lambda each: each.common_prefix(prompt))
            self._free.remove(best)
            return best
        future: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        taken = False
        try:
            async with asyncio.timeout(self._settings.queue_seconds):
                replica = await future
            taken = True
            return replica
        except TimeoutError:
            raise queue_timeout(self._settings.queue_seconds, _retry_after(self._mean_seconds)) from None
        finally:
            if future in self._waiting:
                self._waiting.remove(future)
            if not taken and future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())  # the replica arrived in the moment in which the wait ended

    def run(self, replica: Replica, request: RunningRequest) -> None:
        """Start ``request``. The replica is released when decoding ends, whether or not anyone reads the answer."""
        began = monotonic()

        def on_free() -> None:
            self._mean_seconds += 0.1 * (monotonic() - began - self._mean_seconds)
            self.release(replica)

        replica.start(request, on_free)

    def release(self, replica: Replica) -> None:
        """Give the replica to the next waiting request. A replica that was given up is dropped."""
        if not replica.healthy:
            if not any(each.healthy for each in self.replicas):
                self._refuse_waiting(_all_failed)
            return
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(replica)
                return
        self._free.append(replica)

    def drain(self) -> None:
        """Accept no more requests and refuse the waiting ones. Running requests go on."""
        self.draining = True
        self._refuse_waiting(shutting_down)

    def cancel_running(self) -> None:
        """End the running requests after their current round."""
        for replica in self.replicas:
            if replica.running is not None:
                replica.running.cancel()

    async def close(self, seconds: float) -> bool:
        """End the threads and close the Decoders. Returns False if a thread is still running after ``seconds``."""
        self.drain()
        self.cancel_running()
        stopped = [await asyncio.to_thread(each.stop, seconds) for each in self.replicas]
        for replica, done in zip(self.replicas, stopped, strict=True):
            if done:
                await asyncio.to_thread(replica.decoder.close)
        return all(stopped)

    def _refuse_waiting(self, error: Callable[[], ApiError]) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error())


def _all_failed() -> ApiError:
    return ApiError(503, "every engine has failed — the server must be started again", code="unhealthy")


def _retry_after(seconds: float) -> int:
    return min(max(ceil(seconds), 1), 60)
