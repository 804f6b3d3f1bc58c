"""Persistence: a slow policy's choice is kept for several rounds (Re-SpS section "action caching"), or until acceptance drifts."""

from __future__ import annotations

from dataclasses import dataclass, field

from .base import Observation, Outcome, Policy, trees_of
from .spec import TreeSpec


@dataclass
class ActionPersistence:
    """Asks ``policy`` every ``rounds`` rounds; earlier when the running acceptance leaves ``band`` times what it was at the choice
    (0 is never). The policy is told of every round, so a choice is credited with exactly the rounds it shaped."""

    policy: Policy
    rounds: int
    band: float = 0.0
    _spec: TreeSpec | None = field(default=None, init=False)
    _left: int = field(default=0, init=False)
    _mean: float = field(default=0.0, init=False)
    _at_choice: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"a choice is held for 1 round or more, not {self.rounds}")

    @property
    def trees(self) -> tuple[TreeSpec, ...]:
        return trees_of(self.policy)

    def begin(self) -> None:
        self.policy.begin()
        self._spec, self._left, self._mean = None, 0, 0.0

    def choose(self, observation: Observation) -> TreeSpec:
        if self._spec is None or self._left == 0:
            self._spec, self._left, self._at_choice = self.policy.choose(observation), self.rounds, self._mean
        self._left -= 1
        return self._spec

    def observe(self, outcome: Outcome) -> None:
        self.policy.observe(outcome)
        self._mean = float(outcome.tokens) if self._mean == 0.0 else self._mean + (outcome.tokens - self._mean) / 8
        if self.band and self._at_choice and abs(self._mean - self._at_choice) > self.band * self._at_choice:
            self._left = 0
