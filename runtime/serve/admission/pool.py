"""Replicas and the requests that want their lanes: who runs, who waits, who is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from time import monotonic

from ..errors import ApiError, deadline_exceeded, deadline_unreachable, queue_full, queue_timeout, shutting_down
from ..replica import Replica, RunningRequest
from ..settings import ServerSettings
from .line import Line, Waiting
from .turn import Turn

SETTLE_ROUNDS = 8  # after these a Decoder's average time shows what its newest request costs the others
LEAVE_SECONDS = 10.0  # for the threads of a replaced replica, which have nothing to do any more
LOOK_SECONDS = 0.02  # how often waiting requests look whether --target-ms-per-token allows another one


class Pool:
    """Decides which requests run, wait or are refused. All methods are called in the event loop's thread."""

    def __init__(self, replicas: Sequence[Replica], settings: ServerSettings) -> None:
        self.replicas = tuple(replicas)
        self.lanes = sum(each.lanes for each in replicas)
        self.draining = False
        self._settings = settings
        self._free = [replica for replica in replicas for _ in range(replica.lanes)]  # an entry for each free lane
        self._given = dict.fromkeys(self.replicas, 0.0)  # when a lane was last given, by the clock ``monotonic``
        self._closing: set[asyncio.Task[bool]] = set()
        self._leaving: Counter[Replica] = Counter()  # replaced ones, with the lanes that are still given
        self._line = Line()
        self._look: asyncio.TimerHandle | None = None
        self._admitted = 0
        self._held: Counter[str] = Counter()  # lanes by the name of a key that has a limit of them
        self.on_replace: Callable[[Sequence[Replica]], None] = lambda _: None  # called with those that others took over from
        self.on_end: Callable[[Replica, RunningRequest, BaseException | None], None] = lambda *_: None  # called for each that ran
        self._mean_seconds = 0.0  # of a request on a lane, as a moving average; 0 before the first

    @property
    def waiting(self) -> Counter[int]:
        """How many requests wait, by priority."""
        return self._line.by_priority()

    @property
    def running(self) -> int:
        return sum(len(each.running) for each in (*self.replicas, *self._leaving))

    @property
    def healthy(self) -> bool:
        """Requests are accepted and every replica works."""
        return not self.draining and all(each.healthy for each in self.replicas)

    @contextmanager
    def admit(self, turn: Turn) -> Iterator[None]:
        """Count a request from its admission until its client has the whole answer.

        At most one request per lane and ``queue`` more are admitted, so neither many clients nor slow ones can fill the memory. When the
        server is full, a request may displace a waiting one (Line.displaced_by). Raises ApiError: 429 when the server is full, 503 when it
        is stopping or the answer cannot come in time.
        """
        if self.draining:
            raise shutting_down()
        self._expect_in_time(turn)
        if self._admitted >= self.lanes + self._settings.queue:
            displaced = self._line.displaced_by(turn)
            if displaced is None:
                raise self._full()
            displaced.place.set_exception(self._full())
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    def _full(self) -> ApiError:
        waiting = self.waiting.total()
        return queue_full(self.running, waiting, _retry_after(self._mean_seconds * (waiting + 1) / self.lanes))

    def _expect_in_time(self, turn: Turn) -> None:
        """Raises ApiError if the tokens that ``turn`` needs cannot come before its deadline, by what requests and tokens take now. The
        estimate is low: the rest of the running requests and reading the prompt are left out. When nothing runs there is nothing to go
        by."""
        if not self.running:
            return
        wait = 0.0 if self._open_replicas() else self._mean_seconds * self._line.ahead_of(turn) / self.lanes
        decode = turn.tokens * min(each.decoder.pace.token_seconds for each in self.replicas)
        if monotonic() + wait + decode > turn.deadline:
            raise deadline_unreachable(turn.seconds, wait, decode, _retry_after(wait))

    async def acquire(self, prompt: Sequence[int], turn: Turn, sibling: bool = False) -> Replica:
        """Wait for a free lane; ``run`` releases it. ``sibling``: whether another answer to the same request has a lane or waits in front:
        then it waits until the deadline, and is the last of its client's requests to make room. Raises ApiError: 503 when it takes too
        long or no replica works any more, 504 when the deadline comes first, 429 when another request took the place in the line."""
        if self.draining:
            raise shutting_down()
        if not any(each.healthy for each in self.replicas):
            raise _all_failed()
        waiting = Waiting(prompt, turn, asyncio.get_running_loop().create_future(), sibling)
        self._line.add(waiting)
        self._give()
        taken = False
        try:
            left = turn.deadline - monotonic()
            async with asyncio.timeout(left if sibling else min(self._settings.queue_seconds, left)):
                replica = await waiting.place
            taken = True
            return replica
        except TimeoutError:
            if monotonic() >= turn.deadline:
                raise deadline_exceeded(turn.seconds) from None
            raise queue_timeout(self._settings.queue_seconds, _retry_after(self._mean_seconds)) from None
        finally:
            self._line.remove(waiting)
            place = waiting.place
            if not taken and place.done() and not place.cancelled() and place.exception() is None:
                self._take_back(place.result(), turn)  # the lane was given in the moment in which the wait ended

    def run(self, replica: Replica, request: RunningRequest) -> None:
        """Start ``request``. Its lane is released when decoding ends, whether or not anyone reads the answer."""
        began = monotonic()

        def on_free(error: BaseException | None) -> None:
            seconds = monotonic() - began
            self._mean_seconds += (0.1 if self._mean_seconds else 1.0) * (seconds - self._mean_seconds)
            self._take_back(replica, request.turn)
            self.on_end(replica, request, error)

        replica.start(request, on_free)

    def release(self, replica: Replica) -> None:
        """Give a lane to the next waiting request. Those of a replica that was given up or replaced are not given any more."""
        if replica in self._leaving:
            self._leaving[replica] -= 1
            self._close_if_idle(replica)
            return
        if not any(each.healthy for each in self.replicas):
            self._refuse_waiting(_all_failed)
        self._free.append(replica)
        self._give()

    def _give(self) -> None:
        """Give free lanes to waiting requests, as many as possible."""
        while (replicas := self._open_replicas()) and (waiting := self._line.take(self._may_run)):
            best = replicas[0]
            if len(replicas) > 1:
                best = max(replicas, key=lambda each: self._preference(each, waiting.prompt))
            self._free.remove(best)
            self._given[best] = monotonic()
            if waiting.turn.key.lanes is not None:
                self._held[waiting.turn.key.name] += 1
            waiting.place.set_result(best)
        target = self._settings.target_ms_per_token
        if target is not None and self._look is None and any(each.healthy for each in self._free) and self.waiting:  # it holds them back
            self._look = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_again)

    def _may_run(self, turn: Turn) -> bool:
        """Whether the key of a request has a lane left."""
        return turn.key.lanes is None or self._held[turn.key.name] < turn.key.lanes

    def _take_back(self, replica: Replica, turn: Turn) -> None:
        if turn.key.lanes is not None:
            self._held[turn.key.name] -= 1
        self.release(replica)

    def _look_again(self) -> None:
        self._look = None
        self._give()

    def _busy(self, replica: Replica) -> int:
        """How many of its lanes are given."""
        return replica.lanes - self._free.count(replica)

    def _open_replicas(self) -> list[Replica]:
        """Those that a request may be given to now, the one whose lane is free for longest first."""
        return [each for each in dict.fromkeys(self._free) if each.healthy and (not self._busy(each) or self._keeps_target(each))]

    def _keeps_target(self, replica: Replica) -> bool:
        """Whether the running requests get their tokens as fast as --target-ms-per-token asks for, the newest one included."""
        target, decoder = self._settings.target_ms_per_token, replica.decoder
        settled = target is None or monotonic() - self._given[replica] >= SETTLE_ROUNDS * decoder.pace.round_seconds
        return target is None or (settled and decoder.pace.token_seconds * 1000 <= target)

    def _preference(self, replica: Replica, prompt: Sequence[int]) -> tuple[bool, int, int]:
        """Most of the prompt in the cache weighs more than free lanes; its beginning alone, which all chats share, does not."""
        cached = replica.common_prefix(prompt)
        return 2 * cached >= len(prompt), -self._busy(replica), cached

    def replace(self, replicas: Sequence[Replica]) -> None:
        """Give all further requests to ``replicas``. The present ones finish what they run, and are closed then."""
        leaving = self.replicas
        self._leaving.update({each: self._busy(each) for each in leaving})
        self.replicas, self.lanes = tuple(replicas), sum(each.lanes for each in replicas)
        self._free = [replica for replica in replicas for _ in range(replica.lanes)]
        self._given = dict.fromkeys(replicas, 0.0)
        for each in leaving:
            self._close_if_idle(each)
        self.on_replace(leaving)
        self._give()

    def _close_if_idle(self, replica: Replica) -> None:
        if self._leaving[replica] <= 0:
            del self._leaving[replica]
            self._closing = {each for each in self._closing if not each.done()}
            self._closing.add(asyncio.create_task(_close(replica, LEAVE_SECONDS)))

    def drain(self) -> None:
        """Accept no more requests and refuse the waiting ones. Running requests go on."""
        self.draining = True
        self._refuse_waiting(shutting_down)

    def cancel_running(self) -> None:
        """End the running requests after their current round."""
        for replica in (*self.replicas, *self._leaving):
            for request in replica.running:
                request.cancel()

    async def close(self, seconds: float) -> bool:
        """End the threads and close the Decoders. Returns False if a thread is still running after ``seconds``."""
        self.drain()
        self.cancel_running()
        every = (*self.replicas, *self._leaving)
        self._leaving.clear()
        return all([await _close(each, seconds) for each in every] + [await each for each in self._closing])

    def _refuse_waiting(self, error: Callable[[], ApiError]) -> None:
        while waiting := self._line.take():
            waiting.place.set_exception(error())


async def _close(replica: Replica, seconds: float) -> bool:
    """End a replica's threads and close its Decoder. Returns False if a thread is still running after ``seconds``."""
    stopped = await asyncio.to_thread(replica.stop, seconds)
    if stopped:
        await asyncio.to_thread(replica.decoder.close)
    return stopped


def _all_failed() -> ApiError:
    return ApiError(503, "every engine has failed — the server must be started again", code="unhealthy")


def _retry_after(seconds: float) -> int:
    return min(max(ceil(seconds), 1), 60)
