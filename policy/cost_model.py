"""The cost model policy: a closed form over calibrated probabilities and measured latencies, which learned policies must beat.

A node with summed log-probability s on level l lies on the target's path with probability sigmoid(slope * s + level * l + bias). Tokens per
second are highest in the long run if every round maximises its tokens minus rate x milliseconds, where ``rate`` is the best tokens per
millisecond (Dinkelbach's method). It begins with the tuning's, and follows what the last rounds gave. So
  - it drafts another level while ``gain`` times the best candidate's probability exceeds the level's cost,
  - it verifies the n best nodes for which the sum of probabilities minus the cost of the pass is largest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .base import Observation, Outcome, PartialTree
from .latency import RoundCosts
from .spec import TreeSpec

_MEMORY = 0.98  # weight of the past rounds in the rate
_PRIOR_ROUNDS = 50  # of plain decoding: the tuning's rate weighs as much as so many


@dataclass(frozen=True)
class Calibration:
    """The cost model's fitted numbers.

    ``slope``, ``level``, ``bias``: of the acceptance probability. ``gain``: expected tokens of another level, per probability of its best
    candidate. ``rate``: tokens per millisecond to begin with. ``tree``: the largest tree, (nodes, depth, width).
    """

    slope: float
    level: float
    bias: float
    gain: float
    rate: float
    tree: tuple[int, int, int]


@dataclass
class CostModel:
    """A GrowthPolicy that weighs expected tokens against latency. ``sizes``: the allowed numbers of nodes, None if every number is."""

    calibration: Calibration
    latency: RoundCosts
    sizes: tuple[int, ...] | None = None
    _tokens: float = field(default=0.0, init=False)
    _milliseconds: float = field(default=0.0, init=False)
    _length: int = field(default=0, init=False)
    _level: int = field(default=0, init=False)

    @property
    def rate(self) -> float:
        """Tokens per millisecond of the last rounds, and no less than plain decoding has: otherwise trees that fail would seem to cost
        less and less."""
        if not self._milliseconds:
            return self.calibration.rate
        return max(self._tokens / self._milliseconds, 1 / self.latency.round(1, 0, 0, self._length))

    @property
    def trees(self) -> tuple[TreeSpec, ...]:
        return (TreeSpec(*self.calibration.tree),)

    def begin(self) -> None:
        """Nothing to do: requests in a row are often alike."""

    def choose(self, observation: Observation) -> TreeSpec:
        self._length = observation.length
        return TreeSpec(*self.calibration.tree)

    def should_expand(self, partial_tree: PartialTree) -> bool:
        fit, width = self.calibration, partial_tree.spec.width
        best = float(_sigmoid(fit.slope * partial_tree.last_level_scores.max() + fit.level * partial_tree.level + fit.bias))
        return best * fit.gain > self.rate * (
            self.latency.draft(width, partial_tree.level + 1) - self.latency.draft(width, partial_tree.level)
        )

    def num_nodes(self, partial_tree: PartialTree) -> int:
        self._level = partial_tree.level
        available = min(partial_tree.spec.nodes, len(partial_tree.scores) + 1)
        order = np.argsort(-partial_tree.scores, kind="stable")[: available - 1]
        fit = self.calibration
        probabilities = _sigmoid(fit.slope * partial_tree.scores[order] + fit.level * _levels(partial_tree)[order] + fit.bias)
        tokens = 1 + np.concatenate([[0.0], np.cumsum(probabilities)])
        sizes = [size for size in self.sizes or range(1, available + 1) if size <= available] or [1]
        rate = self.rate
        values = [tokens[size - 1] - rate * self.latency.verify(size, partial_tree.length) for size in sizes]
        return sizes[int(np.argmax(values))]

    def observe(self, outcome: Outcome) -> None:
        if not self._milliseconds:
            self._milliseconds = _PRIOR_ROUNDS * self.latency.round(1, 0, 0, self._length)
            self._tokens = self.calibration.rate * self._milliseconds
        spent = self.latency.round(outcome.nodes, self._level, outcome.spec.width, self._length)
        self._tokens = _MEMORY * self._tokens + outcome.tokens
        self._milliseconds = _MEMORY * self._milliseconds + spent


def _levels(partial_tree: PartialTree) -> np.ndarray:
    """The level of each candidate, counted from 1."""
    width = partial_tree.spec.width
    return np.concatenate([np.full(width if level == 0 else width**2, level + 1) for level in range(partial_tree.level)])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))
