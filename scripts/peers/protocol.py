"""Messages between the command and an engine's process. Standard library only, because every engine's environment imports it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol


@dataclass(frozen=True)
class PeerJob:
    """The job of one process. ``options``: the engine's own; ``stop``: token ids that end an answer; ``prompts``: token ids.

    With ``answers`` the process does not decode. It writes the logits at every token of each answer to ``logits_dir``/NUMBER.npy, float32
    [tokens, vocabulary]. With ``clients`` it answers all prompts once for each number of clients, as many at once. ``checkout``: the
    directory of the project whose packages the process imports, if it is another one.
    """

    engine: str
    options: dict[str, Any]
    prompts: list[list[int]]
    stop: list[int]
    new_tokens: int
    threads: int
    answers: list[list[int]] | None = None
    logits_dir: str | None = None
    clients: list[int] | None = None
    checkout: str | None = None


@dataclass(frozen=True)
class PeerAnswer:
    """One decoded answer. ``tokens``: without the stop token; ``first_seconds``: to the first token, prefill included; ``decode_seconds``:
    from the first to the last token, while ``decoded`` tokens, the stop token included, came in ``arrivals`` deliveries."""

    tokens: list[int]
    first_seconds: float
    decode_seconds: float
    decoded: int
    arrivals: int

    @property
    def rate(self) -> float | None:
        """Tokens per second without prefill; None if only the first token came."""
        return self.decoded / self.decode_seconds if self.decoded and self.decode_seconds > 0 else None


@dataclass
class Stopwatch:
    """Records when tokens arrive, one or several at once."""

    started: float = field(default_factory=perf_counter)
    times: list[tuple[float, int]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def saw(self, tokens: list[int]) -> None:
        if tokens:
            self.times.append((perf_counter(), len(tokens)))
            self.tokens.extend(tokens)

    def answer(self, stop: list[int]) -> PeerAnswer:
        """The recorded answer, cut before the first stop token. Raises ValueError if no token came."""
        if not self.times:
            raise ValueError("the engine gave no token")
        ends = [place for place, token in enumerate(self.tokens) if token in stop]
        first, last = self.times[0], self.times[-1]
        kept = self.tokens[: ends[0]] if ends else self.tokens
        return PeerAnswer(
            list(map(int, kept)), first[0] - self.started, last[0] - first[0], len(self.tokens) - first[1], len(self.times) - 1
        )


@dataclass(frozen=True)
class PeerRequest:
    """One answer among several at once. ``tokens``: without the stop token. ``arrived``: seconds since the loop began; ``first_seconds``:
    from then to the first token; ``waits`` and ``counts``: of each later delivery, the wait for it and its tokens."""

    tokens: list[int]
    arrived: float
    first_seconds: float
    waits: list[float]
    counts: list[int]


class PeerEngine(Protocol):
    """One engine with a model loaded, in a process of its own."""

    def answer(self, prompt: list[int], new_tokens: int) -> PeerAnswer:
        """Greedy, at most ``new_tokens``, to a stop token; without any cache of earlier prompts."""

    def logits(self, tokens: list[int], start: int) -> Any:
        """float32 [len(tokens) - start, vocabulary]: the logits after each token from ``start`` on, all computed in one pass."""


class BatchEngine(Protocol):
    """One engine that answers several requests at once."""

    def forget(self) -> None:
        """Drop what the cache holds of earlier requests. Called while nothing runs."""

    def add(self, number: int, prompt: list[int], new_tokens: int) -> None:
        """Begin request ``number``: greedy, at most ``new_tokens``, to a stop token."""

    def step(self) -> list[tuple[int, list[int], bool]]:
        """Run until there is something to tell: (request, its new tokens, whether it has ended) of each that has got on."""


def peak_mib() -> float:
    """Peak memory of this process in MiB. getrusage would include the parent's memory before exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
