"""What a lane's drafted trees brought so far, and what all lanes' did."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

_MEMORY, _POOL_MEMORY = 0.98, 0.98  # weight of the past after each tree
_PRIOR_TREES, _PRIOR_TOKENS = 10.0, 4.0  # how much a lane's own record has to be to weigh as much as the pool's
_POOL_PRIOR = 8.0
_OPTIMISM = 0.25  # accepted tokens of a tree vary by about one; more than this costs most where trees hardly pay (docs/lab/policies.md)
_FIRST_ACCEPTED, _FIRST_ROWS = 1.0, 4.0  # of a tree, before any was seen: drafting is tried first


@dataclass
class Record:
    """Sums over trees, older ones counting less. ``expected``: accepted tokens as the draft's probabilities promised. ``rows``: candidates
    verified."""

    trees: float
    accepted: float
    expected: float
    rows: float

    def add(self, accepted: float, expected: float, rows: float, memory: float) -> None:
        self.trees = memory * self.trees + 1
        self.accepted = memory * self.accepted + accepted
        self.expected = memory * self.expected + expected
        self.rows = memory * self.rows + rows


def first_record() -> Record:
    """The pool's record before the first tree."""
    trees = _POOL_PRIOR
    return Record(trees, trees * _FIRST_ACCEPTED, trees * _FIRST_ACCEPTED, trees * _FIRST_ROWS)


@dataclass
class LaneHistory:
    """One lane's record, beside the pool's: a lane with few trees is taken for an average one. ``drafting``: whether it took part in the
    last round's drafting."""

    own: Record = field(default_factory=lambda: Record(0.0, 0.0, 0.0, 0.0))
    drafting: bool = True

    def add(self, accepted: int, expected: float, rows: int) -> None:
        """Count a tree."""
        self.own.add(accepted, expected, rows, _MEMORY)

    def trust(self, pool: Record) -> float:
        """The factor on the draft's probabilities in this lane."""
        average = pool.accepted / pool.expected
        return (_PRIOR_TOKENS * average + self.own.accepted) / (_PRIOR_TOKENS + self.own.expected)

    def tokens(self, pool: Record) -> float:
        """Accepted tokens of its next tree, with a quarter of a standard error in its favour: a lane that stays out by bad luck shows
        nothing that could bring it back."""
        trees = _PRIOR_TREES + self.own.trees
        return (_PRIOR_TREES * pool.accepted / pool.trees + self.own.accepted) / trees + _OPTIMISM / sqrt(trees)

    def rows(self, pool: Record) -> float:
        """Candidates of its next tree that are verified."""
        return (_PRIOR_TREES * pool.rows / pool.trees + self.own.rows) / (_PRIOR_TREES + self.own.trees)


def add_to_pool(pool: Record, accepted: int, expected: float, rows: int) -> None:
    """Count any lane's tree."""
    pool.add(accepted, expected, rows, _POOL_MEMORY)
