"""How long rounds take, for chunks of prompts and for admission."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter


@dataclass
class Pace:
    """Running means that say how long a round takes. ``round_seconds``, ``round_rows``: of the running lanes, when no prompt is read beside
    them. ``token_seconds``: between the tokens of a running answer, whatever else is done between its rounds."""

    round_seconds: float = 0.0
    round_rows: float = 0.0
    token_seconds: float = 0.0
    _last: float = 0.0  # when the last round ended

    def add_round(self, started: float, tokens_of_a_lane: float, rows: int | None) -> None:
        """Count a round of the running lanes that ends now. ``tokens_of_a_lane``: tokens that it gave each of them. ``rows``: None if its
        pass read a prompt too."""
        now = perf_counter()
        if rows is not None:
            self.count(now - started, rows)
        if now - self._last < 4 * (now - started):  # else nothing ran before it
            self.token_seconds = _mean(self.token_seconds, (now - self._last) / tokens_of_a_lane)
        self._last = now

    def count(self, seconds: float, rows: int) -> None:
        """Count what a round without a prompt beside it took."""
        self.round_seconds = _mean(self.round_seconds, seconds)
        self.round_rows = _mean(self.round_rows, rows)


def _mean(mean: float, value: float) -> float:
    return value if mean == 0 else 0.9 * mean + 0.1 * value
