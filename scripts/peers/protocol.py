"""What the bench and the process of an engine tell each other. Standard library only: it is imported in every engine's environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol


@dataclass(frozen=True)
class PeerJob:
    """What one process is to do. ``options``: the engine's own; ``stop``: token ids that end an answer; ``prompts``: token ids.

    With ``answers`` the process decodes nothing and writes the logits that every answer's tokens were, or would have been, chosen from:
    ``logits_dir``/NUMBER.npy, float32 [tokens, vocabulary].
    """

    engine: str
    options: dict[str, Any]
    prompts: list[list[int]]
    stop: list[int]
    new_tokens: int
    threads: int
    answers: list[list[int]] | None = None
    logits_dir: str | None = None


@dataclass(frozen=True)
class PeerAnswer:
    """One decoded answer. ``tokens`` ends before the stop token. ``first_seconds``: until the first token is there, prefill included;
    ``decode_seconds``: from there to the last token; in it ``decoded`` tokens came, a stop token among them, on ``arrivals`` occasions."""

    tokens: list[int]
    first_seconds: float
    decode_seconds: float
    decoded: int
    arrivals: int

    @property
    def rate(self) -> float | None:
        """Tokens per second without prefill; None where only the first token came."""
        return self.decoded / self.decode_seconds if self.decoded and self.decode_seconds > 0 else None


@dataclass
class Watch:
    """Notes when tokens come. One token or several may come at once."""

    started: float = field(default_factory=perf_counter)
    times: list[tuple[float, int]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def saw(self, tokens: list[int]) -> None:
        if tokens:
            self.times.append((perf_counter(), len(tokens)))
            self.tokens.extend(tokens)

    def answer(self, stop: list[int]) -> PeerAnswer:
        """What was seen, cut before the first stop token. Raises ValueError when nothing came."""
        if not self.times:
            raise ValueError("the engine gave no token")
        ends = [place for place, token in enumerate(self.tokens) if token in stop]
        first, last = self.times[0], self.times[-1]
        kept = self.tokens[: ends[0]] if ends else self.tokens
        return PeerAnswer(
            list(map(int, kept)), first[0] - self.started, last[0] - first[0], len(self.tokens) - first[1], len(self.times) - 1
        )


class PeerEngine(Protocol):
    """One engine with a model loaded, in a process of its own."""

    def answer(self, prompt: list[int], new_tokens: int) -> PeerAnswer:
        """Greedy, at most ``new_tokens``, ending with a stop token; nothing is kept from earlier prompts."""

    def logits(self, tokens: list[int], start: int) -> Any:
        """float32 [len(tokens) - start, vocabulary]: the logits of ``tokens[start:]``'s rows when all are fed at once."""


def peak_mib() -> float:
    """Peak memory of this process. Not getrusage's, which counts the parent's before exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
