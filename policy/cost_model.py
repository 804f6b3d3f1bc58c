"""The closed form that learned policies must beat: calibrated probabilities, measured costs, and the rate they are exchanged at.

A node of summed log-probability s on level l is on the target's path with probability sigmoid(a s + b l + c). In the long run tokens per
second are highest if every round maximises its tokens minus rate x milliseconds (Dinkelbach), so
  - another level is drafted while the best candidate's probability times ``gain`` exceeds what the level costs,
  - the n best nodes are verified for which the probabilities' sum minus the pass's cost is largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Growing, Observation, Outcome
from .spec import TreeSpec
from .surface import Surface


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
    surface: Surface
    sizes: tuple[int, ...] | None = None

    def begin(self) -> None:
        """Every round is decided on its own."""

    def choose(self, observation: Observation) -> TreeSpec:
        return TreeSpec(*self.calibration.tree)

    def deepen(self, growing: Growing) -> bool:
        fit, width = self.calibration, growing.spec.width
        best = float(_sigmoid(fit.slope * growing.last.max() + fit.level * growing.level + fit.bias))
        return best * fit.gain > fit.rate * (self.surface.draft(width, growing.level + 1) - self.surface.draft(width, growing.level))

    def budget(self, growing: Growing) -> int:
        most = min(growing.spec.nodes, len(growing.scores) + 1)
        order = np.argsort(-growing.scores, kind="stable")[: most - 1]
        fit = self.calibration
        chances = _sigmoid(fit.slope * growing.scores[order] + fit.level * _levels(growing)[order] + fit.bias)
        tokens = 1 + np.concatenate([[0.0], np.cumsum(chances)])
        sizes = [size for size in self.sizes or range(1, most + 1) if size <= most] or [1]
        values = [tokens[size - 1] - fit.rate * self.surface.verify(size, growing.length) for size in sizes]
        return sizes[int(np.argmax(values))]

    def observe(self, outcome: Outcome) -> None:
        """What was fitted stays."""


def _levels(growing: Growing) -> np.ndarray:
    width = growing.spec.width
    return np.concatenate([np.full(width if level == 0 else width**2, level + 1) for level in range(growing.level)])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))
