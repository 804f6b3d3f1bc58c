"""A Decoder with a thread for each lane, and a running answer, which passes chunks from such a thread to asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from time import monotonic

from ..decoder import Decoder
from ..decoding.stats import Stats
from ..errors import DecoderClosed, EngineFailure
from ..request import Chunk
from ..stream import Stream
from .admission.turn import Turn
from .errors import LOG, ApiError, logged, shutting_down
from .openai.constraint_fields import renamed
from .openai.requests import GenerationRequest


@dataclass(frozen=True)
class Finished:
    """The end of an answer: the Decoder's stop reason and its statistics."""

    stop: str
    stats: Stats


Inbox = asyncio.Queue[tuple[int, Chunk | Finished | ApiError]]
"""Where the chunks and ends of a request's answers arrive, with the answer's number."""
OnFree = Callable[[BaseException | None], None]


class RunningRequest:
    """One answer on a lane. What comes of it goes to ``inbox``, with its ``number``; ``cancel`` ends it after the current round.

    ``turn``: its deadline and who asks. The lane never waits for the reader: unread chunks are kept there, at most one context.
    """

    def __init__(self, prompt: Sequence[int], generation: GenerationRequest, turn: Turn, inbox: Inbox, number: int) -> None:
        self.prompt, self.generation, self.turn = prompt, generation, turn
        self.tokens: list[int] = []
        self.began = monotonic()
        self._inbox, self._number = inbox, number
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()
        self._stream: Stream | None = None

    @property
    def request(self) -> int | None:
        """Its number in this process; None until a lane has it."""
        return None if self._stream is None else self._stream.number

    def cancel(self) -> None:
        """End the request after the current round, from any thread. Does nothing to a finished request."""
        self._cancelled.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def decode(self, decoder: Decoder) -> BaseException | None:
        """Decode to the end. Runs in a lane's thread. Returns the exception of the Decoder, if any."""
        try:
            if self._cancelled.is_set():
                raise shutting_down()  # read only by a client that still waits while the server stops
            params = replace(self.generation.params, deadline=max(0.0, self.turn.deadline - monotonic()))
            asked = self.generation
            with decoder.stream(self.prompt, params, policy=asked.policy, tenant=asked.tenant, store=asked.store) as stream:
                self._stream = stream
                if self._cancelled.is_set():  # cancelled while the stream was opened
                    stream.cancel()
                for chunk in stream:
                    self.tokens.extend(chunk.tokens)
                    self._send(chunk)
            self._send(Finished(stream.stop or "cancelled", stream.stats))
        except BaseException as error:  # the reader gets it; the thread goes on
            self._send(renamed(logged(error, self.generation.prompt_field), self.generation.constraint_field))
            return error
        return None

    def _send(self, item: Chunk | Finished | ApiError) -> None:
        post(self._loop, self._inbox.put_nowait, (self._number, item))


class Replica:
    """A Decoder with a thread for each of its lanes. ``running``: its requests. ``healthy`` turns False for good."""

    def __init__(self, decoder: Decoder, max_failures: int) -> None:
        self.decoder = decoder
        self.lanes = decoder.lanes
        self.healthy = True
        self.running: set[RunningRequest] = set()
        self._cached: deque[list[int]] = deque(maxlen=self.lanes)  # the tokens of the last answers, which the lanes probably hold
        self._failures, self._max_failures, self._failed = 0, max_failures, 0.0
        self._work: SimpleQueue[tuple[RunningRequest, OnFree] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        # daemons, because a hung engine must not block the exit
        self._threads = [threading.Thread(target=self._serve, name="resps-lane", daemon=True) for _ in range(self.lanes)]
        for each in self._threads:
            each.start()

    def start(self, request: RunningRequest, on_free: OnFree) -> None:
        """Decode ``request``, at most ``lanes`` at once. The event loop calls ``on_free`` when its lane can take the next one, with the
        exception that ended the request, if any."""
        self.running.add(request)
        self._work.put((request, on_free))

    def common_prefix(self, prompt: Sequence[int]) -> int:
        """Number of leading tokens of ``prompt`` that the cache probably holds."""
        return max((_common_prefix(each, prompt) for each in self._cached), default=0)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            request, on_free = work
            began = monotonic()
            error = request.decode(self.decoder)
            post(self._loop, self._finish, request, began, error, on_free)

    def _finish(self, request: RunningRequest, began: float, error: BaseException | None, on_free: OnFree) -> None:
        self.running.remove(request)
        if error is None:
            self._failures = 0
            self._cached.append([*request.prompt, *request.tokens])
        elif isinstance(error, EngineFailure | DecoderClosed):
            self._cached.clear()
            if began >= self._failed:  # requests that ran when another one failed may have been in the same pass: it counts once
                self._failures, self._failed = self._failures + 1, monotonic()
            if self.healthy and (self._failures >= self._max_failures or isinstance(error, DecoderClosed)):
                self.healthy = False
                LOG.error("a replica is given up after %d failures in a row: %s", self._failures, error)
        on_free(error)

    def stop(self, seconds: float) -> bool:
        """End the threads after their current requests. Returns False if one is still running after ``seconds``. Blocks."""
        end = monotonic() + seconds
        for _ in self._threads:
            self._work.put(None)
        for each in self._threads:
            each.join(max(0.0, end - monotonic()))
        return not any(each.is_alive() for each in self._threads)


def _common_prefix(old: Sequence[int], new: Sequence[int]) -> int:
    different = (at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other)
    return next(different, min(len(old), len(new)))


def post(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: object) -> None:
    """Schedule a call in the event loop, from any thread. Does nothing if the loop is closed, as at the end of the process."""
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        LOG.debug("the event loop is closed")
