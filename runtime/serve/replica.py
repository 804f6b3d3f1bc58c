"""A Decoder with its thread, and a running request, which passes chunks from that thread to asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from time import monotonic

from ..decoder import Decoder
from ..decoding.stats import Stats
from ..errors import DecoderClosed, EngineFailure
from ..request import Chunk
from ..stream import Stream
from .errors import LOG, ApiError, logged, shutting_down
from .openai_requests import GenerationRequest


@dataclass(frozen=True)
class Finished:
    """The end of an answer: the Decoder's stop reason and its statistics."""

    stop: str
    stats: Stats


class RunningRequest:
    """One request on a replica, as asyncio sees it. Call ``next`` until it returns Finished; ``cancel`` ends it after the current round.

    ``deadline``: by the clock ``monotonic``. The replica never waits for the reader: unread chunks are kept here, at most one context.
    """

    def __init__(self, prompt: Sequence[int], generation: GenerationRequest, deadline: float) -> None:
        self.prompt, self.generation, self.deadline = prompt, generation, deadline
        self.tokens: list[int] = []
        self._unread: asyncio.Queue[Chunk | Finished | ApiError] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()
        self._stream: Stream | None = None

    async def next(self) -> Chunk | Finished:
        """Wait for the next chunk or the end. Raises ApiError when the Decoder failed."""
        item = await self._unread.get()
        if isinstance(item, ApiError):
            raise item
        return item

    def cancel(self) -> None:
        """End the request after the current round, from any thread. Does nothing to a finished request."""
        self._cancelled.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def decode(self, decoder: Decoder) -> BaseException | None:
        """Decode to the end. Runs in the replica's thread. Returns the exception of the Decoder, if any."""
        try:
            if self._cancelled.is_set():
                raise shutting_down()  # read only by a client that still waits while the server stops
            params = replace(self.generation.params, deadline=max(0.0, self.deadline - monotonic()))
            with decoder.stream(self.prompt, params, policy=self.generation.policy) as stream:
                self._stream = stream
                if self._cancelled.is_set():  # cancelled while the stream was opened
                    stream.cancel()
                for chunk in stream:
                    self.tokens.extend(chunk.tokens)
                    self._send(chunk)
            self._send(Finished(stream.stop or "cancelled", stream.stats))
        except BaseException as error:  # the reader gets it; the thread goes on
            self._send(logged(error, self.generation.prompt_field))
            return error
        return None

    def _send(self, item: Chunk | Finished | ApiError) -> None:
        post(self._loop, self._unread.put_nowait, item)


class Replica:
    """A Decoder with a thread of its own. ``cached``: the tokens that its KV cache probably holds. ``healthy`` turns False for good."""

    def __init__(self, decoder: Decoder, max_failures: int) -> None:
        self.decoder = decoder
        self.cached: list[int] = []
        self.healthy = True
        self.running: RunningRequest | None = None
        self._failures, self._max_failures = 0, max_failures
        self._work: SimpleQueue[tuple[RunningRequest, Callable[[], None]] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._serve, name="resps-replica", daemon=True)  # a hung engine must not block the exit
        self._thread.start()

    def start(self, request: RunningRequest, on_free: Callable[[], None]) -> None:
        """Decode ``request``. The event loop calls ``on_free`` when the replica can take the next one."""
        self.running = request
        self._work.put((request, on_free))

    def common_prefix(self, prompt: Sequence[int]) -> int:
        """Number of leading tokens of ``prompt`` that the cache probably holds."""
        different = (at for at, (old, new) in enumerate(zip(self.cached, prompt, strict=False)) if old != new)
        return next(different, min(len(self.cached), len(prompt)))

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            request, on_free = work
            error = request.decode(self.decoder)
            if error is None:
                self.cached = [*request.prompt, *request.tokens]
            post(self._loop, self._finish, error, on_free)

    def _finish(self, error: BaseException | None, on_free: Callable[[], None]) -> None:
        self.running = None
        if isinstance(error, EngineFailure | DecoderClosed):
            self.cached = []
            self._failures += 1
            if self._failures >= self._max_failures or isinstance(error, DecoderClosed):
                self.healthy = False
                LOG.error("a replica is given up after %d failures in a row: %s", self._failures, error)
        elif error is None:
            self._failures = 0
        on_free()

    def stop(self, seconds: float) -> bool:
        """End the thread after its current request. Returns False if it is still running after ``seconds``. Blocks."""
        self._work.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()


def post(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: object) -> None:
    """Schedule a call in the event loop, from any thread. Does nothing if the loop is closed, as at the end of the process."""
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        LOG.debug("the event loop is closed")
