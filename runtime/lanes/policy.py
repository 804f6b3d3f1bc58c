"""The policy of one lane: its errors end the lane's request and no other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

from policy import PLAIN, CorrectedLatency, FixedPolicy, GrowthPolicy, Observation, Outcome, PartialTree, Policy, TreeSpec

T = TypeVar("T")


class LanePolicy:
    """Calls ``policy``. ``fault``: the first error that it raised; from then on the lane decodes plainly until the forest ends it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.fault: Exception | None = None

    def begin(self) -> None:
        self._policy.begin()  # in the thread that starts the request, which gets its errors

    def choose(self, observation: Observation) -> TreeSpec:
        return self._safely(lambda: self._policy.choose(observation).within(sys.maxsize, sys.maxsize), PLAIN)

    def observe(self, outcome: Outcome) -> None:
        self._safely(lambda: self._policy.observe(outcome), None)

    def _safely(self, call: Callable[[], T], otherwise: T) -> T:
        if self.fault is None:
            try:
                return call()
            except Exception as error:
                self.fault = error
        return otherwise


class LaneGrowthPolicy(LanePolicy):
    """The same for a GrowthPolicy."""

    def __init__(self, policy: GrowthPolicy) -> None:
        super().__init__(policy)
        self._growth = policy

    def should_expand(self, partial_tree: PartialTree) -> bool:
        return self._safely(lambda: bool(self._growth.should_expand(partial_tree)), False)

    def num_nodes(self, partial_tree: PartialTree) -> int:
        return self._safely(lambda: int(self._growth.num_nodes(partial_tree)), 1)


def lane_policy(policy: Policy, costs: CorrectedLatency) -> Policy:
    """What a lane uses of ``policy``: a copy, because requests that run at the same time must not mix their rounds. A FixedPolicy keeps
    nothing. The copy has begun. ``costs``: shared with the copy if ``policy`` has them, as what a round costs belongs to the machine.
    Raises what copying and ``begin`` raise."""
    if type(policy) is FixedPolicy:
        return policy
    copied = deepcopy(policy, {id(costs): costs})
    own = LaneGrowthPolicy(copied) if isinstance(copied, GrowthPolicy) else LanePolicy(copied)
    own.begin()
    return own
