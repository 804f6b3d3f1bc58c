"""One Decoder and the thread that drives it, and the answer it hands over to asyncio."""

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
class Ended:
    """The end of an answer: why, and what it cost."""

    stop: str
    stats: Stats


class RunningRequest:
    """What a replica makes of one request, on asyncio's side. ``next`` until it gives an Ended; ``cancel`` ends it after the round.

    The replica never waits for the reader: what is not read yet lies here, at most the rest of the context.
    """

    def __init__(self, prompt: Sequence[int], ask: GenerationRequest, until: float) -> None:
        self.prompt, self.ask = prompt, ask
        self.until = until  # by the clock ``monotonic``
        self.tokens: list[int] = []
        self._came: asyncio.Queue[Chunk | Ended | ApiError] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()
        self._stream: Stream | None = None

    async def next(self) -> Chunk | Ended:
        """What comes next. Raises ApiError for what the Decoder raised."""
        came = await self._came.get()
        if isinstance(came, ApiError):
            raise came
        return came

    def cancel(self) -> None:
        """End it after the current round; from any thread. Does nothing to an answer that has ended."""
        self._cancelled.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def decode(self, decoder: Decoder) -> BaseException | None:
        """The replica's thread: decode to the end, and tell how it ended. Returns what the Decoder raised."""
        try:
            if self._cancelled.is_set():
                raise shutting_down()  # told to nobody but those who wait while the server ends
            params = replace(self.ask.params, deadline=max(0.0, self.until - monotonic()))
            with decoder.stream(self.prompt, params, policy=self.ask.policy) as stream:
                self._stream = stream
                if self._cancelled.is_set():  # while the stream was made
                    stream.cancel()
                for chunk in stream:
                    self.tokens.extend(chunk.tokens)
                    self._tell(chunk)
            self._tell(Ended(stream.stop or "cancelled", stream.stats))
        except BaseException as error:  # the reader's affair; the thread goes on
            self._tell(logged(error))
            return error
        return None

    def _tell(self, what: Chunk | Ended | ApiError) -> None:
        post(self._loop, self._came.put_nowait, what)


class Replica:
    """A Decoder with a thread of its own. ``seen``: the tokens its cache may still hold. ``healthy`` is False once it is given up."""

    def __init__(self, decoder: Decoder, failures: int) -> None:
        self.decoder = decoder
        self.seen: list[int] = []
        self.healthy = True
        self.running: RunningRequest | None = None
        self._failures, self._most = 0, failures
        self._work: SimpleQueue[tuple[RunningRequest, Callable[[], None]] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._serve, name="resps-replica", daemon=True)  # a hung engine must not hold the exit
        self._thread.start()

    def start(self, answer: RunningRequest, free: Callable[[], None]) -> None:
        """Decode ``answer``; ``free`` is called in the event loop when the replica can take the next."""
        self.running = answer
        self._work.put((answer, free))

    def shared(self, prompt: Sequence[int]) -> int:
        """Tokens at the beginning of ``prompt`` that the cache probably holds."""
        different = (at for at, (old, new) in enumerate(zip(self.seen, prompt, strict=False)) if old != new)
        return next(different, min(len(self.seen), len(prompt)))

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            answer, free = work
            error = answer.decode(self.decoder)
            if error is None:
                self.seen = [*answer.prompt, *answer.tokens]
            post(self._loop, self._ended, error, free)

    def _ended(self, error: BaseException | None, free: Callable[[], None]) -> None:
        self.running = None
        if isinstance(error, EngineFailure | DecoderClosed):
            self.seen = []
            self._failures += 1
            if self._failures >= self._most or isinstance(error, DecoderClosed):
                self.healthy = False
                LOG.error("a replica is given up after %d failures in a row: %s", self._failures, error)
        elif error is None:
            self._failures = 0
        free()

    def stop(self, seconds: float) -> bool:
        """End the thread after what it does; False if it does not end in time. Blocks."""
        self._work.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()


def post(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: object) -> None:
    """Have the event loop call this soon; nothing when it is over, as at the end of the process."""
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        LOG.debug("the event loop is closed")
