"""What a request cost, counted in one place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .loop import Round


@dataclass(frozen=True)
class Stats:
    """One request. ``tokens_per_cycle`` counts the bonus token (the papers' tau) and leaves out the first token, which prefill brings;
    ``tokens_per_second`` is those same tokens over ``decode_seconds``. ``accepted`` counts draft tokens only."""

    prompt_tokens: int
    new_tokens: int
    cycles: int
    drafted: int
    accepted: int
    tokens_per_cycle: float
    tokens_per_second: float
    prefill_seconds: float
    decode_seconds: float
    draft_seconds: float
    verify_seconds: float

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass
class Tally:
    """Sums rounds while a request runs."""

    prompt_tokens: int
    new_tokens: int = 0
    cycles: int = 0
    drafted: int = 0
    accepted: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0

    def add(self, round_: Round, kept: int) -> None:
        """``kept`` of the round's tokens belong to the answer: a stop may cut the rest."""
        self.new_tokens += kept
        self.cycles += 1
        self.drafted += round_.nodes - 1
        self.accepted += min(kept, len(round_.tokens) - 1)
        self.decode_seconds += round_.seconds
        self.draft_seconds += round_.draft_seconds
        self.verify_seconds += round_.verify_seconds

    def stats(self) -> Stats:
        decoded = max(0, self.new_tokens - 1)
        return Stats(
            **dataclasses.asdict(self),
            tokens_per_cycle=decoded / self.cycles if self.cycles else 0.0,
            tokens_per_second=decoded / self.decode_seconds if self.decode_seconds else 0.0,
        )
