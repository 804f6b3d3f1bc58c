"""Whether to bet that the text repeats itself, and how many tokens at once: a closed form beside the policies that shape the draft's trees.

What followed the same words before can be verified without drafting anything. How much of it will hold depends on how many tokens the last
words have in common with their earlier place; a bet is made when that is worth more of the machine's time than the rounds that are
drafted. The idea of combining a draft model with suffix look-up is TensorRT-LLM's and vLLM's; betting by expected time is ours.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from .latency import LatencyModel
from .spec import TreeSpec

LEAST = 2
"""Tokens in common below which nothing is bet."""
ROWS = (3, 5, 8, 12)
"""Sizes of a bet, its root included."""
MATCHED = (LEAST, 3, 4, 6, 9, 13)  # classes of matches, by their least length
# How often the first token of a bet is right, and each further one after a right one: counted in conversations that the demo model wrote by
# itself (scripts/lab/count_repeats.py). A request corrects them by what it sees; the prior weighs as much as so many bets.
_FIRST = (0.51, 0.61, 0.71, 0.77, 0.85, 0.95)
_NEXT = (0.70, 0.75, 0.80, 0.83, 0.88, 0.94)
_PRIOR, _MEMORY = 4.0, 32.0  # bets
_DRAFTED = 1.8  # tokens a drafted round brings, before anything is known
_KEPT = 0.95  # of what is known of drafted rounds, from round to round


@dataclass
class _Rate:
    """A share that is counted while it is used."""

    share: float
    weight: float
    most: float

    def see(self, hits: float, tries: float) -> None:
        total = self.weight + tries
        self.share = (self.share * self.weight + hits) / total
        self.weight = min(total, self.most)


@dataclass
class LookupGate:
    """One request's bets. ``latency``: what rounds cost here, of which only ratios matter; ``usual``: the tree that is drafted else."""

    latency: LatencyModel
    usual: TreeSpec
    _first: list[_Rate] = field(init=False)
    _next: list[_Rate] = field(init=False)
    _tokens: float = field(init=False)
    _cost: float = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A new request: every text repeats itself in its own way."""
        self._first = [_Rate(share, _PRIOR, _MEMORY) for share in _FIRST]
        self._next = [_Rate(share, 2 * _PRIOR, 2 * _MEMORY) for share in _NEXT]
        self._tokens, self._cost = _DRAFTED, self.latency.of(self.usual, 0)

    def rows(self, matched: int, most: int, length: int) -> int:
        """How many rows to verify, at most ``most``, behind ``length`` committed tokens, when ``matched`` tokens agree; 1 is no bet."""
        if matched < LEAST or most < 2:
            return 1
        rate = self._tokens / self._cost
        sizes = {min(rows, most) for rows in ROWS}
        worth = {rows: self._expected(matched, rows - 1) - rate * self.latency.round(rows, 0, 0, length) for rows in sizes}
        best = max(worth, key=lambda rows: worth[rows])
        return best if worth[best] > 0 else 1

    def settle(self, matched: int, guessed: int, accepted: int) -> None:
        """What came of a bet."""
        place = _class(matched)
        self._first[place].see(float(accepted > 0), 1.0)
        if accepted and guessed > 1:
            self._next[place].see(accepted - 1, min(accepted, guessed - 1))

    def drafted(self, nodes: int, depth: int, width: int, length: int, tokens: int) -> None:
        """What another round brought: ``tokens`` with a tree of ``nodes`` rows, drafted to ``depth`` levels of ``width``."""
        self._tokens = self._tokens * _KEPT + tokens
        self._cost = self._cost * _KEPT + self.latency.round(nodes, depth, width, length)

    def _expected(self, matched: int, guesses: int) -> float:
        """Tokens of a bet's round, its bonus included."""
        place = _class(matched)
        first, following = self._first[place].share, min(self._next[place].share, 0.999)
        return 1 + first * (1 - following**guesses) / (1 - following)


def _class(matched: int) -> int:
    return bisect_right(MATCHED, matched) - 1


def rough_latency(quantized: bool) -> LatencyModel:
    """Costs over that of one row, for machines where nothing was measured: two cores, SmolLM2-135M (docs/lab/passes.md)."""
    rows = (1, 2, 4, 6, 8, 12, 16)
    verify = (1.0, 1.03, 1.2, 1.42, 1.66, 2.18, 2.52) if quantized else (1.0, 1.04, 1.14, 1.23, 1.41, 1.48, 1.75)
    draft = (0.26, 0.36, 0.46) if quantized else (0.18, 0.24, 0.3)
    return LatencyModel(rows, (0,), (verify,), (2,), (1, 3, 5), (draft,), 0.01)
