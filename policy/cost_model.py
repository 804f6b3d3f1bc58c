"""The closed form that learned policies must beat: calibrated probabilities, measured costs, and the rate they are exchanged at.

A node of summed log-probability s on level l is on the target's path with probability sigmoid(a s + b l + c). In the long run tokens per
second are highest if every round maximises its tokens minus rate x milliseconds (Dinkelbach), so
  - another level is drafted while the best candidate's probability times ``gain`` exceeds what the level costs,
  - the n best nodes are verified for which the probabilities' sum minus the pass's cost is largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Observation, Outcome, PartialTree
from .latency import LatencyModel
from .spec import TreeSpec


@dataclass(frozen=True)
class Calibration:
    """``slope``, ``level``, ``bias``: a, b and c; ``gain``: of a level, per probability of its best candidate; ``rate``: tokens per
    millisecond of the best that is known; ``tree``: the largest one, (nodes, depth, width)."""

    slope: float
    level: float
    bias: float
    gain: float
    rate: float
    tree: tuple[int, int, int]


@dataclass
class CostModel:
    """Decides while the tree grows. ``sizes``: trees that may be verified, where not every size may."""

    calibration: Calibration
    latency: LatencyModel
    sizes: tuple[int, ...] | None = None

    @property
    def trees(self) -> tuple[TreeSpec, ...]:
        return (TreeSpec(*self.calibration.tree),)

    def begin(self) -> None:
        """Every round is decided on its own."""

    def choose(self, observation: Observation) -> TreeSpec:
        return TreeSpec(*self.calibration.tree)

    def should_expand(self, partial_tree: PartialTree) -> bool:
        fit, width = self.calibration, partial_tree.spec.width
        best = float(_sigmoid(fit.slope * partial_tree.last.max() + fit.level * partial_tree.level + fit.bias))
        return best * fit.gain > fit.rate * (
            self.latency.draft(width, partial_tree.level + 1) - self.latency.draft(width, partial_tree.level)
        )

    def num_nodes(self, partial_tree: PartialTree) -> int:
        most = min(partial_tree.spec.nodes, len(partial_tree.scores) + 1)
        order = np.argsort(-partial_tree.scores, kind="stable")[: most - 1]
        fit = self.calibration
        chances = _sigmoid(fit.slope * partial_tree.scores[order] + fit.level * _levels(partial_tree)[order] + fit.bias)
        tokens = 1 + np.concatenate([[0.0], np.cumsum(chances)])
        sizes = [size for size in self.sizes or range(1, most + 1) if size <= most] or [1]
        values = [tokens[size - 1] - fit.rate * self.latency.verify(size, partial_tree.length) for size in sizes]
        return sizes[int(np.argmax(values))]

    def observe(self, outcome: Outcome) -> None:
        """What was fitted stays."""


def _levels(partial_tree: PartialTree) -> np.ndarray:
    width = partial_tree.spec.width
    return np.concatenate([np.full(width if level == 0 else width**2, level + 1) for level in range(partial_tree.level)])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))
