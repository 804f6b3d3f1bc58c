"""The best fixed tree for each number of lanes, and for all of them. The rounds of a fixed tree do not depend on neighbours, so one replay
of each tree says what any number of lanes would gain from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

from policy import FixedPolicy, LanesLatency, LatencyModel, TreeSpec

from ..replay.simulation import Answers, any_trace, replay

_ONE = LatencyModel((1,), (0,), ((1.0,),), (1,), (1,), ((0.0,),), 0.0)  # a round takes a millisecond: only tokens count


@dataclass(frozen=True)
class FixedTrees:
    """``tokens``: of a round, by tree. ``length``: mean committed tokens."""

    tokens: Mapping[TreeSpec, float]
    length: float

    def rate(self, tree: TreeSpec, lanes: int, latency: LanesLatency) -> float:
        """Tokens per millisecond if all of ``lanes`` lanes use ``tree``."""
        taken = latency.draft(lanes, tree.width, tree.depth) + latency.verify(lanes * tree.nodes, lanes, self.length) + latency.host(lanes)
        return lanes * self.tokens[tree] / taken

    def best(self, lanes: int, latency: LanesLatency) -> TreeSpec:
        """The fastest tree for so many lanes; PLAIN is one of them."""
        return max(self.tokens, key=lambda tree: self.rate(tree, lanes, latency))

    def table(self, most: int, latency: LanesLatency) -> tuple[TreeSpec, ...]:
        """The fastest tree for each number of lanes from 1."""
        return tuple(self.best(lanes, latency) for lanes in range(1, most + 1))

    def best_for_all(self, loads: Sequence[int], latency: LanesLatency) -> TreeSpec:
        """The single tree with the highest geometric mean over ``loads``, each a number of lanes."""
        return max(self.tokens, key=lambda tree: exp(sum(log(self.rate(tree, lanes, latency)) for lanes in loads)))


def replay_trees(answers: Answers, trees: Sequence[TreeSpec]) -> FixedTrees:
    """What each of ``trees`` gains on recorded answers."""
    return FixedTrees({tree: replay(FixedPolicy(tree), answers, _ONE).tokens_per_cycle for tree in trees}, mean_length(answers))


def mean_length(answers: Answers) -> float:
    """Committed tokens in the middle of an answer."""
    return sum(any_trace(traces).prompt_tokens + len(any_trace(traces)) / 2 for traces in answers) / len(answers)
