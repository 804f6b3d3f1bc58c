"""The lookup gate: decides when to verify tokens copied from earlier text instead of a draft tree, and how many.

Earlier text is that of the request itself, or a past answer. Tokens that followed the same words there can be verified without drafting.
The longer the match, the more of them are accepted. A lookup is used when its expected tokens are worth more time than drafted rounds.
TensorRT-LLM and vLLM also combine a draft model with suffix lookup; the decision by expected time is ours.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from .latency import LatencyModel, RoundCosts
from .spec import TreeSpec

MIN_MATCH = 2
"""Shortest match, in tokens, that is used."""
CHAIN_SIZES = (3, 5, 8, 12)
"""Rows of a lookup chain, its root included."""
MATCH_CLASSES = (MIN_MATCH, 3, 4, 6, 9, 13, 20)
"""Matches are counted in classes; these are the shortest lengths of each."""
# Acceptance rates by match class: of the first copied token, and of each further one after an accepted one. Counted in conversations that
# the demo model wrote by itself (scripts/lab/count_repeats.py). Each request corrects them with its own counts; the prior weighs as much as
# _PRIOR_WEIGHT lookups.
_FIRST_RATES = (0.51, 0.61, 0.71, 0.77, 0.85, 0.95, 0.95)
_NEXT_RATES = (0.70, 0.75, 0.80, 0.83, 0.88, 0.94, 0.94)
# The same for past answers, to questions that have nothing to do with each other, where they match more than the request's own text; the
# last are higher, because so long a match is mostly one to the same question.
_PAST_FIRST_RATES = (0.0, 0.0, 0.40, 0.51, 0.64, 0.73, 0.90)
_PAST_NEXT_RATES = (0.0, 0.0, 0.50, 0.61, 0.71, 0.74, 0.93)
_PRIOR_WEIGHT, _MAX_WEIGHT = 4.0, 32.0  # lookups
_PRIOR_DRAFTED_TOKENS = 1.8  # tokens of a drafted round, before any was observed
_DECAY = 0.95  # per drafted round, of the sums over drafted rounds


@dataclass
class _Rate:
    """A running acceptance rate; ``max_weight`` bounds how many past tries it remembers."""

    rate: float
    weight: float
    max_weight: float

    def update(self, hits: float, tries: float) -> None:
        total = self.weight + tries
        self.rate = (self.rate * self.weight + hits) / total
        self.weight = min(total, self.max_weight)


@dataclass
class LookupGate:
    """Decides on the lookups of one request. ``latency``: only its ratios matter. ``fixed_tree``: the tree of a typical drafted round.
    ``sizes``: rows that a chain may have; ``exact``: whether it may have no other number, as where a pass is prepared for each."""

    latency: RoundCosts
    fixed_tree: TreeSpec
    sizes: tuple[int, ...] = CHAIN_SIZES
    exact: bool = False
    _first: list[_Rate] = field(init=False)  # of the request's own text, then of past answers
    _next: list[_Rate] = field(init=False)
    _drafted_tokens: float = field(init=False)
    _drafted_ms: float = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start a new request with the prior rates: texts differ in how often they repeat themselves."""
        self._first = [_Rate(rate, _PRIOR_WEIGHT, _MAX_WEIGHT) for rate in (*_FIRST_RATES, *_PAST_FIRST_RATES)]
        self._next = [_Rate(rate, 2 * _PRIOR_WEIGHT, 2 * _MAX_WEIGHT) for rate in (*_NEXT_RATES, *_PAST_NEXT_RATES)]
        self._drafted_tokens, self._drafted_ms = _PRIOR_DRAFTED_TOKENS, self.latency.round_with(self.fixed_tree, 0)

    def rows(self, matched: int, max_rows: int, length: int, past: bool = False) -> int:
        """How many rows to verify after a match of ``matched`` tokens, at most ``max_rows``; 1 means no lookup. ``length``: committed
        tokens. ``past``: whether a past answer matched, not the request's own text."""
        if matched < MIN_MATCH or max_rows < 2:
            return 1
        rate = self._drafted_tokens / self._drafted_ms
        sizes = {rows for rows in self.sizes if rows <= max_rows} if self.exact else {min(rows, max_rows) for rows in self.sizes}
        gains = {rows: self._expected_tokens(matched, rows - 1, past) - rate * self.latency.round(rows, 0, 0, length) for rows in sizes}
        best = max(gains, key=lambda rows: gains[rows], default=1)
        return best if gains.get(best, 0) > 0 else 1

    def probabilities(self, matched: int, proposed: int, past: bool = False) -> list[float]:
        """The probability of each of ``proposed`` copied tokens that it and all before it are accepted."""
        index = _rate_of(matched, past)
        first, following = self._first[index].rate, self._next[index].rate
        return [first * following**step for step in range(proposed)]

    def observe_lookup(self, matched: int, proposed: int, accepted: int, past: bool = False) -> None:
        """Learn from a lookup round: ``accepted`` of ``proposed`` copied tokens."""
        index = _rate_of(matched, past)
        self._first[index].update(float(accepted > 0), 1.0)
        if accepted and proposed > 1:
            self._next[index].update(accepted - 1, min(accepted, proposed - 1))

    def observe_draft(self, nodes: int, depth: int, width: int, length: int, tokens: int) -> None:
        """Learn from a drafted round: ``tokens`` from a tree of ``nodes`` rows, drafted to ``depth`` levels of ``width``."""
        self._drafted_tokens = self._drafted_tokens * _DECAY + tokens
        self._drafted_ms = self._drafted_ms * _DECAY + self.latency.round(nodes, depth, width, length)

    def _expected_tokens(self, matched: int, proposed: int, past: bool) -> float:
        """Tokens of a lookup round, bonus token included: a geometric series in the rate of further tokens."""
        index = _rate_of(matched, past)
        first, following = self._first[index].rate, min(self._next[index].rate, 0.999)
        return 1 + first * (1 - following**proposed) / (1 - following)


def _rate_of(matched: int, past: bool) -> int:
    return bisect_right(MATCH_CLASSES, matched) - 1 + past * len(MATCH_CLASSES)


def default_latency(quantized: bool, one_pass: bool = False) -> LatencyModel:
    """Latencies relative to a pass of one row, for machines without measurements: SmolLM2-135M on two cores (docs/lab/passes.md).

    ``one_pass``: whether the draft guesses all levels in one pass, so that depth costs nothing (docs/lab/drafts.md).
    """
    rows = (1, 2, 4, 6, 8, 12, 16)
    verify = (1.0, 1.03, 1.2, 1.42, 1.66, 2.18, 2.52) if quantized else (1.0, 1.04, 1.14, 1.23, 1.41, 1.48, 1.75)
    draft = (0.26, 0.36, 0.46) if quantized else (0.18, 0.24, 0.3)
    if one_pass:
        return LatencyModel(rows, (0,), (verify,), (2,), (1,), ((0.75 if quantized else 0.5,),), 0.01)
    return LatencyModel(rows, (0,), (verify,), (2,), (1, 3, 5), (draft,), 0.01)
