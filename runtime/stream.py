"""The handle on a running request: iterate, cancel, join."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from .request import Chunk, Request
from .stats import Stats


@dataclass(frozen=True)
class Result:
    """A finished answer. ``tokens`` hold the stop token if one came, ``text`` does not. ``stop``: eos, length, stop_string or cancelled."""

    schema: int
    text: str
    tokens: tuple[int, ...]
    stop: str
    stats: Stats

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Run:
    """What Decoder and Stream share of the active request. Refers to neither, so dropping a Stream frees it at once."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.working = threading.Lock()  # held while a pass runs
        self.over = False


class Stream(Iterator[Chunk]):
    """One running request. Iterate for Chunks; ``cancel()`` from any thread; ``close()``, ``with`` or dropping it frees the Decoder."""

    def __init__(self, run: Run, chunks: Iterator[Chunk]) -> None:
        self._run, self._chunks = run, chunks

    def __next__(self) -> Chunk:
        with self._run.working:
            if not self._run.over:
                try:
                    return next(self._chunks)
                except BaseException:  # the end, an error or Ctrl-C: in every case the request is over
                    self._run.over = True
                    raise
        if self._run.request.stop is None:
            self._run.request.stop = "cancelled"
        raise StopIteration

    @property
    def stats(self) -> Stats:
        """What the request has cost so far."""
        return self._run.request.tally.stats()

    @property
    def stop(self) -> str | None:
        """Why it ended; None while it runs."""
        return self._run.request.stop

    def cancel(self) -> None:
        """End the request after the current round. What came so far is a correct beginning of the answer."""
        self._run.request.cancelled = True

    def result(self) -> Result:
        """Consume the rest and return it as a whole."""
        text: list[str] = []
        tokens: list[int] = []
        for chunk in self:
            text.append(chunk.text)
            tokens.extend(chunk.tokens)
        return Result(1, "".join(text), tuple(tokens), self.stop or "cancelled", self.stats)

    def close(self) -> None:
        """End the request. For the thread that iterates; others call ``cancel``."""
        self._run.over = True

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self._run.over = True
