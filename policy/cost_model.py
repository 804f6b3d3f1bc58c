"""The closed form that learned policies must beat: calibrated probabilities, measured costs, and the rate they are exchanged at.

A node of summed log-probability s on level l is on the target's path with probability sigmoid(a s + b l + c). In the long run tokens per
second are highest if every round maximises its tokens minus rate x milliseconds (Dinkelbach), so
  - another level is drafted while the best candidate's probability times ``gain`` exceeds what the level costs,
  - the n best nodes are verified for which the probabilities' sum minus the pass's cost is largest,
  - and where trees keep losing against plain decoding, most rounds are plain.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .base import Growing, Observation, Outcome
from .spec import PLAIN, TreeSpec
from .surface import Surface

# In rounds. Impatience costs more than patience: pauses after six rounds without luck took 3 % of all speed (docs/benchmarks.md).
PATIENCE, MEMORY, PROBE, SHORTEST_PAUSE, LONGEST_PAUSE = 24, 32, 4, 16, 64


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
    """One pause for all requests at a time; ``sizes``: trees that may be verified, where not every size may."""

    calibration: Calibration
    surface: Surface
    sizes: tuple[int, ...] | None = None
    _advantage: float = field(default=0.0, init=False)
    _pause: int = field(default=0, init=False)
    _plain_left: int = field(default=0, init=False)
    _probe_left: int = field(default=PATIENCE, init=False)
    _length: int = field(default=0, init=False)

    def begin(self) -> None:
        self._advantage, self._pause, self._plain_left, self._probe_left = 0.0, 0, 0, PATIENCE

    def choose(self, observation: Observation) -> TreeSpec:
        self._length = observation.length
        if self._plain_left:
            self._plain_left -= 1
            return PLAIN
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
        """Where a tree cost more than plain decoding of the same tokens, for longer than by chance, pauses grow."""
        if outcome.spec == PLAIN:
            return
        plain = self.surface.round(1, 0, 0, self._length)
        self._advantage += (outcome.tokens * plain - 1000 * outcome.seconds - self._advantage) / MEMORY
        self._probe_left -= 1
        if self._probe_left > 0:
            return
        if self._advantage < 0:
            self._pause = min(max(SHORTEST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
            self._plain_left, self._probe_left = self._pause, PROBE
        else:
            self._pause, self._probe_left = 0, 1


def _levels(growing: Growing) -> np.ndarray:
    width = growing.spec.width
    return np.concatenate([np.full(width if level == 0 else width**2, level + 1) for level in range(growing.level)])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))
