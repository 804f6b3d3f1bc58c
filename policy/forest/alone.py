"""The row budget of a single request, as a policy like any other."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..base import Observation, Outcome, PartialTree
from ..latency import LatencyModel
from ..spec import PLAIN, TreeSpec
from .budget import RowBudget
from .history import LaneHistory


@dataclass
class BudgetAlone:
    """A GrowthPolicy. ``latency``: of this machine; costs are not corrected in service, as a round's time is known as a whole only.
    ``largest``: bounds of every tree. What trees brought is remembered beyond the request, as an average one's record."""

    latency: LatencyModel
    largest: TreeSpec
    budget: RowBudget = field(init=False)
    _history: LaneHistory = field(init=False, default_factory=LaneHistory)
    _promised: float = field(init=False, default=0.0)  # tokens of this round's tree

    def __post_init__(self) -> None:
        self.budget = RowBudget(self.latency.alone(), self.largest.nodes)

    @property
    def trees(self) -> tuple[TreeSpec, ...]:
        return (self.largest,)

    def begin(self) -> None:
        self._history = LaneHistory()

    def choose(self, observation: Observation) -> TreeSpec:
        self.budget.begin_round(1, observation.length)
        return self.largest if self.budget.participants([self._history], self.largest.width)[0] else PLAIN

    def should_expand(self, partial_tree: PartialTree) -> bool:
        width = partial_tree.spec.width
        best = np.sort(partial_tree.last_level_scores)[-width:]
        return self.budget.deeper([self.budget.probabilities(self._history, best)], partial_tree.level, width)[0]

    def num_nodes(self, partial_tree: PartialTree) -> int:
        scores = partial_tree.scores
        (nodes,) = self.budget.nodes([self.budget.probabilities(self._history, scores)], [partial_tree.spec.nodes], [])
        self._promised = float(np.exp(np.sort(scores)[::-1][: nodes - 1]).sum())
        self.budget.observe_draft([1] * partial_tree.level, partial_tree.spec.width, None)
        return nodes

    def observe(self, outcome: Outcome) -> None:
        if outcome.spec != PLAIN:
            self.budget.observe_tree(self._history, self._promised, outcome.tokens - 1, outcome.nodes - 1)
        self.budget.observe_round(outcome.tokens, outcome.nodes, None)
