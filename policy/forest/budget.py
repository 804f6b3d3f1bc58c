"""The row budget: the cost model for several lanes, a closed form. Learned controllers may replace it.

A candidate with the draft's score s lies on the target's path with the probability p = min(1, trust x exp(s)); one that was copied from
earlier text with the rates of `policy.LookupGate`. ``trust`` belongs to a lane: its accepted tokens over those that exp(s) promised. A
millisecond is worth ``rate`` tokens, the tokens per millisecond that rounds with so many lanes gave (Dinkelbach's method).
Three decisions follow, each for all lanes together:
  - before drafting, who drafts: the lanes whose usual tree is worth more than its rows and its share of the draft's time;
  - between levels, who drafts on: the lanes for which the level's likely tokens, less their rows, are worth the level's time;
  - before the pass, how many rows: the candidates of all lanes, the likeliest first, while they are worth the pass's time, which grows with
    the largest tree as well: attention has as many places in every lane.
Lanes that stay out are tried again after 4 rounds, then after more and more, at most 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..correction import CorrectedLatency
from .history import LaneHistory, Record, add_to_pool, first_record

_MEMORY = 0.98  # weight of the past in the rates
_PRIOR_ROUNDS = 8.0  # of plain decoding, in the rate of a number of lanes that did not occur yet
_FIRST_PAUSE, _LONGEST_PAUSE = 4, 64  # rounds
_TRIED = 4  # a trial is made with one lane in so many, the most promising of those that stay out
_LIMITS = (2, 3, 4, 5, 6, 8, 12, 16, 32, 1 << 30)  # rows of the largest tree that are tried
_CHILD = 0.5  # probability that a candidate's best child is accepted if the candidate is


@dataclass
class RowBudget:
    """Decides for the lanes that have no policy of their own. ``latency``: only its ratios matter. ``max_rows``: of a pass. ``load``:
    lanes of the round and their mean length; ``beside``: rows of a prompt in the same pass; both set by ``begin_round``."""

    latency: CorrectedLatency
    max_rows: int
    pool: Record = field(init=False, default_factory=first_record)
    load: tuple[int, float] = field(init=False, default=(1, 0.0))
    beside: int = field(init=False, default=0)
    _rates: dict[int, tuple[float, float]] = field(init=False, default_factory=dict)  # lanes -> tokens, milliseconds
    _depth: float = field(init=False, default=3.0)  # levels of the last drafts, their mean
    _pause: int = field(init=False, default=_FIRST_PAUSE)
    _until_trial: int = field(init=False, default=1)
    _before_trial: int | None = field(init=False, default=None)  # how many lanes drafted before the trial that was just made
    _decided_for: int = field(init=False, default=0)  # lanes of the last decision
    _growing: list[int] = field(init=False, default_factory=list)  # lanes that drafted each level of this round
    _width: int = field(init=False, default=0)
    _row: float = field(init=False, default=0.0)  # what a row beyond one a lane costs in this round, in tokens

    @property
    def rate(self) -> float:
        """Tokens per millisecond under the present load."""
        tokens, milliseconds = self._rates.get(self.load[0]) or self._plain_rate()
        return tokens / milliseconds

    def _plain_rate(self) -> tuple[float, float]:
        lanes, length = self.load
        plain = self.latency.verify(lanes, lanes, length) + self.latency.host(lanes)
        return _PRIOR_ROUNDS * lanes, _PRIOR_ROUNDS * plain

    def begin_round(self, lanes: int, length: float, beside: int = 0) -> None:
        """A round of ``lanes`` lanes, ``length`` committed tokens long on average. Call it before any decision."""
        self.load, self.beside, self._growing = (lanes, length), beside, []

    def participants(self, lanes: Sequence[LaneHistory], width: int) -> list[bool]:
        """Which of ``lanes``, which could all draft trees of ``width`` beams, do. Asked once a round. Where nobody did, nothing new is
        known until the next trial, or until a request begins or ends."""
        if len(lanes) == self._decided_for and self._until_trial > 1 and not any(lane.drafting for lane in lanes):
            self._until_trial -= 1
            return [False] * len(lanes)
        self._decided_for = len(lanes)
        rate = self.rate
        worth = self._worth(lanes, rate)
        order = sorted(range(len(lanes)), key=lambda index: -worth[index])
        depth = max(1, round(self._depth))
        costs = [rate * self.latency.draft(count, width, depth) for count in range(len(lanes) + 1)]
        totals = np.concatenate([[0.0], np.cumsum([worth[index] for index in order])]) - costs
        count = int(np.argmax(totals))
        chosen = set(order[:count])
        if self._before_trial is not None:
            self._pause = _FIRST_PAUSE if count > self._before_trial else min(2 * self._pause, _LONGEST_PAUSE)
            self._until_trial, self._before_trial = self._pause, None
        if count < len(lanes):
            self._until_trial -= 1
            if self._until_trial <= 0:
                self._before_trial, chosen = count, set(order[: count + max(1, len(lanes) // _TRIED)])
        for index, lane in enumerate(lanes):
            lane.drafting = index in chosen
        return [lane.drafting for lane in lanes]

    def _worth(self, lanes: Sequence[LaneHistory], rate: float) -> list[float]:
        """Tokens that each lane's next tree gives, minus what its rows cost."""
        count, length = self.load
        rows = [lane.rows(self.pool) for lane in lanes]
        more = max(1, round(sum(rows)))
        passes = self.latency.passes(count + self.beside, more, count, length)
        self._row = rate * float(passes[-1] - passes[0]) / more
        return [lane.tokens(self.pool) - self._row * each for lane, each in zip(lanes, rows, strict=True)]

    def deeper(self, beams: Sequence[np.ndarray], level: int, width: int) -> list[bool]:
        """Which trees get another level after ``level``. ``beams``: for each tree the probabilities of the candidates that the level would
        grow from."""
        rate = self.rate
        worth = [float(np.maximum(_CHILD * each - self._row, 0).sum()) for each in beams]
        order = sorted(range(len(worth)), key=lambda index: -worth[index])
        totals, gained = [0.0], 0.0
        for count, index in enumerate(order, 1):
            gained += worth[index]
            totals.append(gained - rate * (self.latency.draft(count, width, level + 1) - self.latency.draft(count, width, level)))
        chosen = set(order[: int(np.argmax(totals))])
        return [index in chosen for index in range(len(worth))]

    def probabilities(self, lane: LaneHistory, scores: np.ndarray) -> np.ndarray:
        """How likely each of a lane's candidates is on the target's path."""
        return np.asarray(np.minimum(lane.trust(self.pool) * np.exp(scores), 1))

    def nodes(self, offers: Sequence[np.ndarray], most: Sequence[int], others: Sequence[int]) -> list[int]:
        """The nodes of each tree, roots included: the likeliest candidates of all, at most ``most`` nodes a tree. ``offers``: their
        candidates' probabilities. ``others``: rows of each lane that does not share the budget."""
        best = [np.sort(each)[::-1][: limit - 1] for each, limit in zip(offers, most, strict=True)]
        lane = np.repeat(np.arange(len(best)), [len(each) for each in best])
        own = np.concatenate([np.arange(2, len(each) + 2) for each in best])  # rows of its tree, if a candidate is its last
        flat = np.concatenate(best)
        base = len(best) + sum(others)
        order = np.argsort(-flat, kind="stable")
        lanes, length = self.load
        more = min(len(order), max(0, self.max_rows - base))
        costs = self.rate * self.latency.passes(base + self.beside, more, lanes, length)
        place = self.rate * self.latency.place(length) * lanes
        found = -np.inf, order[:0]
        for limit in _LIMITS if place and lanes > 1 else (len(flat) + 1,):
            kept = order[own[order] <= limit][:more]
            widest = np.maximum.accumulate(np.concatenate([[max([1, *others])], own[kept]]))
            unfilled = np.maximum(0, widest - -(-(base + np.arange(len(kept) + 1)) // lanes))
            worth = np.concatenate([[0.0], np.cumsum(flat[kept])]) - costs[: len(kept) + 1] - place * unfilled
            at = int(np.argmax(worth))
            found = max(found, (float(worth[at]), kept[:at]), key=lambda each: each[0])
            if limit >= own.max(initial=0):
                break
        counts = 1 + np.bincount(lane[found[1]], minlength=len(best))
        return [int(count) for count in counts]

    def observe_draft(self, growing: list[int], width: int, milliseconds: float | None) -> None:
        """Learn what this round's drafting took; None if that was no usual drafting, as after rounds without. ``growing``: lanes that
        drafted each level; ``width``: beams of a level."""
        self._growing, self._width = growing, width
        if milliseconds is not None:
            self.latency.observe_draft(growing, width, milliseconds)
        if growing:
            self._depth += 0.1 * (sum(growing) / growing[0] - self._depth)

    def observe_tree(self, lane: LaneHistory, promised: float, accepted: int, rows: int) -> None:
        """Learn from a drafted tree of a lane. ``promised``: the sum of exp(score) over the ``rows`` candidates that were
        verified."""
        lane.add(accepted, promised, rows)
        add_to_pool(self.pool, accepted, promised, rows)

    def observe_round(self, tokens: int, rows: int, milliseconds: float, widest: int = 0) -> None:
        """Learn from a whole round: ``tokens`` and ``rows`` of all lanes, what the pass took, and the rows of the ``widest`` tree."""
        lanes, length = self.load
        self.latency.observe_pass(rows, lanes, length, milliseconds, widest)
        drafting = self.latency.drafting(self._growing, self._width)
        spent = self.latency.verify(rows, lanes, length, widest) + drafting + self.latency.host(lanes)
        before_tokens, before = self._rates.get(lanes) or self._plain_rate()
        self._rates[lanes] = _MEMORY * before_tokens + tokens, _MEMORY * before + spent
