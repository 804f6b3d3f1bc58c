"""Stream, the handle of a running request (iterate, cancel, collect), and Result, a finished answer."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, NoReturn, SupportsIndex

from .decoding.cycle import CycleEvent
from .decoding.logprobs import TokenLogprob
from .decoding.stats import Stats
from .decoding.totals import TotalsRecorder
from .native_calls import NATIVE_CALLS, expect_own_process
from .request import Chunk, Request
from .sampling_params import MAX_ANSWERS, SamplingParams


@dataclass(frozen=True)
class Result:
    """A finished answer. ``tokens`` include the stop token if there is one, ``text`` does not. ``stop``: eos, length, stop_string,
    cancelled or deadline. ``logprobs``: one per token, if requested."""

    schema: int
    text: str
    tokens: tuple[int, ...]
    stop: str
    stats: Stats
    logprobs: tuple[TokenLogprob, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values, for JSON."""
        return asdict(self)


_NUMBERS = itertools.count(1)


class ActiveRequest:
    """The state of a request that Decoder and Stream share. It refers to neither, so a dropped Stream is freed at once. ``number``: in this
    process."""

    def __init__(self, request: Request, recorder: TotalsRecorder) -> None:
        self.request, self._totals_recorder, self.process, self.number = request, recorder, os.getpid(), next(_NUMBERS)
        self.pass_lock = threading.RLock()  # held while a pass runs
        self.in_pass = False  # tells a holder of the lock, such as a signal handler, that it interrupted a pass of its own thread
        self.after_pass: Callable[[], None] | None = None  # called when that pass has ended
        self._ended = threading.Lock()  # acquired once and never released, so only one of several threads ends the request

    @property
    def ended(self) -> bool:
        return self._ended.locked()

    def end(self, reason: str = "cancelled") -> None:
        """End the request, keep its answer and add it to the totals, once. ``reason``: why, if the request itself has no reason yet."""
        if self._ended.acquire(blocking=False):
            self.request.stop = self.request.stop or reason
            self._totals_recorder.add(self.request.counters, self.request.stop)
            if self.request.past is not None:
                self.request.past.keep(self.request.prompt, self.request.answer)

    def report(self, cycle: CycleEvent) -> None:
        """Add a cycle to the totals, and hand it to the Decoder's listener."""
        if cycle.rows:
            self._totals_recorder.add_pass(cycle.rows)
        self._totals_recorder.tell(cycle)


class Stream(Iterator[Chunk]):
    """A running request. Iterate for its Chunks. Any thread may call ``cancel()``. ``close()``, ``with`` or dropping it frees the
    Decoder."""

    def __init__(self, active: ActiveRequest, chunks: Iterator[Chunk]) -> None:
        self._active, self._chunks = active, chunks

    def __next__(self) -> Chunk:
        active = self._active
        expect_own_process(active.process)
        with NATIVE_CALLS, active.pass_lock:
            active.in_pass = True
            try:
                if not active.ended:
                    chunk = next(self._chunks)
                    if (cycle := _cycle(active, chunk)) is not None:
                        active.report(cycle)
                    return chunk
            except StopIteration:
                active.end()
            except BaseException as error:  # also Ctrl-C: the request ends in any case
                active.end("error" if isinstance(error, Exception) else "cancelled")
                raise
            finally:
                active.in_pass = False
                if active.after_pass is not None:
                    active.end()
                    active.after_pass()
        raise StopIteration

    @property
    def number(self) -> int:
        """The request's number in this process, which a `CycleEvent` has, too."""
        return self._active.number

    @property
    def stats(self) -> Stats:
        """Statistics of the request so far."""
        return self._active.request.counters.stats()

    @property
    def stop(self) -> str | None:
        """Why the request ended; None while it runs, "error" after an exception."""
        return self._active.request.stop

    def cancel(self) -> None:
        """End the request after the current round. The chunks so far are a correct beginning of the answer."""
        self._active.request.cancelled = True

    def result(self) -> Result:
        """Consume the remaining chunks and return them as one Result."""
        chunks = list(self)
        tokens = tuple(token for chunk in chunks for token in chunk.tokens)
        logprobs = None
        if self._active.request.params.logprobs is not None:
            logprobs = tuple(each for chunk in chunks for each in chunk.logprobs or ())
        return Result(1, "".join(chunk.text for chunk in chunks), tokens, self.stop or "cancelled", self.stats, logprobs)

    def close(self) -> None:
        """End the request. Only for the thread that iterates; other threads call ``cancel``."""
        self._active.end()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a Stream cannot be pickled or copied — pass on its Chunks or its result()")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self._active.end()


def _cycle(active: ActiveRequest, chunk: Chunk) -> CycleEvent | None:
    """The cycle of one lane that made a chunk; None for a last chunk without tokens."""
    if chunk.spec is not None and active.request.round is not None:
        return CycleEvent(((active.number, active.request.round),), chunk.nodes)
    counters = active.request.counters
    read = counters.prompt_tokens - counters.cached_prompt_tokens
    return CycleEvent(read_rows=read, read_seconds=counters.prefill_seconds) if chunk.tokens else None


class LaneStream(Stream):
    """A running request of a Decoder with several lanes. Its passes run in the Decoder's thread, so iterating only waits for chunks."""

    def __init__(self, active: ActiveRequest, chunks: Iterator[Chunk]) -> None:
        super().__init__(active, chunks)
        self._one_reader, self._left = threading.RLock(), False

    def __next__(self) -> Chunk:
        expect_own_process(self._active.process)
        with self._one_reader:
            if self._left:
                raise StopIteration
            try:
                return next(self._chunks)
            except StopIteration:
                raise
            except BaseException:  # also Ctrl-C: the request ends in any case
                self._active.end()
                raise

    def close(self) -> None:
        self._left = True  # what is in the queue is not read any more
        super().close()


def answers_of(open_stream: Callable[[SamplingParams], Stream], params: SamplingParams, count: int, at_once: int) -> list[Result]:
    """``count`` answers with ``params``, at most ``at_once`` at the same time."""
    if not 1 <= count <= MAX_ANSWERS:
        raise ValueError(f"count must be from 1 to {MAX_ANSWERS}, not {count}")
    results: list[Result] = []
    while len(results) < count:
        with ExitStack() as opened:
            numbers = range(len(results), min(count, len(results) + at_once))
            streams = [opened.enter_context(open_stream(params.for_answer(number))) for number in numbers]
            results += [stream.result() for stream in streams]
    return results


async def chunks_of(open_stream: Callable[[], Stream]) -> AsyncIterator[Chunk]:
    """The Chunks of the stream that ``open_stream`` opens, waited for in threads. Ends the request when the reader leaves, after the round
    that runs then: the stream is never used by two threads."""
    with await asyncio.to_thread(open_stream) as stream:
        step: asyncio.Task[Chunk | None] | None = None
        try:
            while True:
                step = asyncio.create_task(asyncio.to_thread(next, stream, None))
                if (chunk := await asyncio.shield(step)) is None:
                    return
                yield chunk
        finally:
            stream.cancel()
            if step is not None and not step.done():
                await asyncio.wait([step])
