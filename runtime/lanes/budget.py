"""The row budget: how many rows a pass has, and which lanes' candidates get them. A closed form; learned controllers may replace it.

A candidate of the draft lies on the target's path with probability ``trust`` * exp(score), one that was copied from earlier text with the
rates of `policy.LookupGate`. A round with the r best candidates of all lanes gives one token a lane and the sum of their probabilities; it
takes the draft's time and that of a pass over lanes + r rows. The budget is the r with the most tokens per second. When even that is no
more than a round without the draft gives, lanes decode plainly for some rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from policy import LatencyModel

_MEMORY = 0.97  # weight of the past in every running mean
_FIRST_PAUSE, _LONGEST_PAUSE = 4, 64  # rounds


@dataclass
class PassSeconds:
    """Seconds of a target pass as a line over its rows: least squares over the passes so far, older ones counting less."""

    sums: np.ndarray  # of 1, rows, rows**2, seconds, rows * seconds

    @classmethod
    def expected(cls, latency: LatencyModel) -> PassSeconds:
        """A line through the latency model's passes, in its own unit: the first real passes outweigh it."""
        sums = np.zeros(5)
        for rows in (1, 4, 16):
            sums += 1e-3 * _terms(rows, latency.verify(rows, 0) * 0.01)
        return cls(sums)

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from one pass."""
        self.sums = _MEMORY * self.sums + _terms(rows, seconds)

    def line(self) -> tuple[float, float]:
        """(seconds of a pass, seconds more for each row)."""
        ones, rows, squares, seconds, products = self.sums
        variance = ones * squares - rows * rows
        slope = max(0.0, (ones * products - rows * seconds) / variance) if variance > 1e-9 * squares * ones else 0.0
        return max(0.0, (seconds - slope * rows) / ones), slope


def _terms(rows: int, seconds: float) -> np.ndarray:
    return np.array([1.0, rows, rows * rows, seconds, rows * seconds])


@dataclass
class RowBudget:
    """Chooses rows for the lanes that have no policy of their own. ``latency``: used before the first passes; only its ratios matter.
    ``max_rows``: of a pass. ``trust``: the factor on the draft's probabilities, by what was accepted so far."""

    latency: LatencyModel
    max_rows: int
    _pass: PassSeconds = field(init=False)
    _chunk: PassSeconds = field(init=False)
    _draft_seconds: float = field(init=False, default=0.0)
    trust: float = field(init=False, default=1.0)
    _pause: int = field(init=False, default=_FIRST_PAUSE)  # length of the next one
    _paused: int = field(init=False, default=0)  # rounds left

    def __post_init__(self) -> None:
        self._pass, self._chunk = PassSeconds.expected(self.latency), PassSeconds.expected(self.latency)

    def drafts(self) -> bool:
        """Whether to draft in this round. Asked once a round."""
        self._paused = max(0, self._paused - 1)
        return self._paused == 0

    @property
    def paused(self) -> bool:
        """Whether lanes decode plainly for now."""
        return self._paused > 0

    def nodes(self, offers: Sequence[np.ndarray], most: Sequence[int], drafted: Sequence[bool], others: Sequence[int]) -> list[int]:
        """The nodes of each tree, roots included: the likeliest candidates of all, at most ``most`` nodes a tree. ``offers``: their
        candidates' probabilities, which never rise from parent to child. ``drafted``: which of them the draft made. ``others``: rows of
        each lane that does not share the budget."""
        best = [np.sort(each)[::-1][: limit - 1] for each, limit in zip(offers, most, strict=True)]
        lane = np.repeat(np.arange(len(best)), [len(each) for each in best])
        flat = np.concatenate(best)
        order = np.argsort(-flat, kind="stable")[: max(0, self.max_rows - sum(others) - len(best))]
        lanes, base = len(best) + len(others), len(best) + sum(others)
        chosen, rate = self._best(flat[order], lanes, base, self._draft_seconds if any(drafted) else 0.0)
        if any(drafted):
            copied = order[~np.asarray(drafted)[lane[order]]]
            if rate > self._best(flat[copied], lanes, base, 0.0)[1]:
                self._pause = _FIRST_PAUSE
            else:
                self._paused, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        counts = 1 + np.bincount(lane[order[:chosen]], minlength=len(best))
        return [int(count) for count in counts]

    def _best(self, probabilities: np.ndarray, lanes: int, base: int, seconds: float) -> tuple[int, float]:
        """How many candidates, the likeliest first, give the most tokens per second in a round that takes ``seconds`` beside its pass, and
        how many that is. ``lanes`` give a token each; ``base``: rows without candidates."""
        tokens = lanes + np.concatenate([[0.0], np.cumsum(probabilities)])
        whole, each_row = self._pass.line()
        rates = tokens / np.maximum(whole + each_row * (base + np.arange(len(tokens))) + seconds, 1e-9)
        chosen = int(np.argmax(rates))
        return chosen, float(rates[chosen])

    def observe_draft(self, seconds: float) -> None:
        """Learn what a round's drafting took."""
        self._draft_seconds = seconds if self._draft_seconds == 0 else _MEMORY * self._draft_seconds + (1 - _MEMORY) * seconds

    def observe_pass(self, rows: int, seconds: float) -> None:
        """Learn what a pass took."""
        self._pass.observe(rows, seconds)

    def observe_chunk(self, rows: int, seconds: float) -> None:
        """Learn what a chunk of a prompt took."""
        self._chunk.observe(rows, seconds)

    def chunk_rows(self, seconds: float) -> int:
        """How many rows of a prompt take so long in a pass of their own."""
        whole, each_row = self._chunk.line()
        return int(min(max(0.0, seconds - whole) / max(each_row, 1e-6), 1e6))

    def observe_accepted(self, predicted: float, accepted: int) -> None:
        """Learn from one lane's drafted tree: how many of its tokens were expected to be accepted, and how many were."""
        self.trust = min(2.0, max(0.1, self.trust + 0.02 * (accepted - predicted)))
