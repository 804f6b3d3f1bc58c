"""The answers of one request: each waits for a lane of its own, and their chunks come as they are made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..request import Chunk
from .admission.pool import Pool
from .admission.turn import Turn
from .errors import ApiError, logged
from .openai.requests import GenerationRequest
from .replica import Finished, Inbox, RunningRequest


class Answers:
    """``generation.count`` answers to ``prompt``. ``on_lane`` is called when one got its lane. Call ``start``, then ``next`` until every
    answer is Finished; ``cancel`` ends those that run after their current round."""

    def __init__(self, pool: Pool, prompt: Sequence[int], generation: GenerationRequest, turn: Turn, on_lane: Callable[[], None]) -> None:
        self._pool, self.prompt, self._generation, self._turn, self._on_lane = pool, prompt, generation, turn, on_lane
        self._inbox: Inbox = asyncio.Queue()
        self._running: list[RunningRequest] = []
        self._starting: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Wait for a lane and start decoding. Several answers go on waiting for theirs; the first reads the prompt, and the others find it
        in the cache. Raises ApiError."""
        if self._generation.count == 1:
            await self._start(0)
        else:
            self._starting = [asyncio.create_task(self._start_safely(number)) for number in range(self._generation.count)]

    async def _start(self, number: int) -> None:
        replica = await self._pool.acquire(self.prompt, self._turn, sibling=number > 0)
        self._on_lane()
        own = replace(self._generation, params=self._generation.params.for_answer(number))
        request = RunningRequest(self.prompt, own, self._turn, self._inbox, number)
        self._running.append(request)
        self._pool.run(replica, request)

    async def _start_safely(self, number: int) -> None:
        try:
            await self._start(number)
        except Exception as error:  # the reader gets it
            self._inbox.put_nowait((number, logged(error)))

    async def next(self) -> tuple[int, Chunk | Finished]:
        """Wait for the next chunk or end of any answer, with the answer's number. Raises ApiError when the Decoder failed."""
        number, item = await self._inbox.get()
        if isinstance(item, ApiError):
            raise item
        return number, item

    def cancel(self) -> None:
        """End all answers. Does nothing to finished ones."""
        for task in self._starting:
            task.cancel()
        for request in self._running:
            request.cancel()
