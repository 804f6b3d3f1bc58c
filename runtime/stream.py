"""The handle on a running request: iterate, cancel, join."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from .decoding.logprobs import TokenLogprob
from .decoding.stats import Stats
from .decoding.totals import Ledger
from .request import Chunk, Request


@dataclass(frozen=True)
class Result:
    """A finished answer. ``tokens`` hold the stop token if one came, ``text`` does not. ``stop``: eos, length, stop_string, cancelled or
    deadline. ``logprobs``: one per token, if they were asked for."""

    schema: int
    text: str
    tokens: tuple[int, ...]
    stop: str
    stats: Stats
    logprobs: tuple[TokenLogprob, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Run:
    """What Decoder and Stream share of the active request. Refers to neither, so dropping a Stream frees it at once."""

    def __init__(self, request: Request, ledger: Ledger) -> None:
        self.request, self._ledger = request, ledger
        self.working = threading.RLock()  # held while a pass runs
        self.inside = False  # a pass runs: for who comes by in its own thread, as a signal handler does
        self.afterwards: Callable[[], None] | None = None  # what must wait until it has run
        self._over = threading.Lock()  # taken once and for ever, so only one of several threads ends it

    @property
    def over(self) -> bool:
        return self._over.locked()

    def end(self, otherwise: str = "cancelled") -> None:
        """Nothing more comes of it. ``otherwise``: the reason if it has none yet."""
        if self._over.acquire(blocking=False):
            self.request.stop = self.request.stop or otherwise
            self._ledger.add(self.request.tally, self.request.stop)


class Stream(Iterator[Chunk]):
    """One running request. Iterate for Chunks; ``cancel()`` from any thread; ``close()``, ``with`` or dropping it frees the Decoder."""

    def __init__(self, run: Run, chunks: Iterator[Chunk]) -> None:
        self._run, self._chunks = run, chunks

    def __next__(self) -> Chunk:
        run = self._run
        with run.working:
            run.inside = True
            try:
                if not run.over:
                    return next(self._chunks)
            except StopIteration:
                run.end()
            except BaseException as error:  # a failure or Ctrl-C: in every case the request is over
                run.end("error" if isinstance(error, Exception) else "cancelled")
                raise
            finally:
                run.inside = False
                if run.afterwards is not None:
                    run.end()
                    run.afterwards()
        raise StopIteration

    @property
    def stats(self) -> Stats:
        """What the request has cost so far."""
        return self._run.request.tally.stats()

    @property
    def stop(self) -> str | None:
        """Why it ended; None while it runs, "error" after an exception."""
        return self._run.request.stop

    def cancel(self) -> None:
        """End the request after the current round. What came so far is a correct beginning of the answer."""
        self._run.request.cancelled = True

    def result(self) -> Result:
        """Consume the rest and return it as a whole."""
        chunks = list(self)
        tokens = tuple(token for chunk in chunks for token in chunk.tokens)
        logprobs = None
        if self._run.request.params.logprobs is not None:
            logprobs = tuple(each for chunk in chunks for each in chunk.logprobs or ())
        return Result(1, "".join(chunk.text for chunk in chunks), tokens, self.stop or "cancelled", self.stats, logprobs)

    def close(self) -> None:
        """End the request. For the thread that iterates; others call ``cancel``."""
        self._run.end()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self._run.end()
