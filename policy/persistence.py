"""Action persistence: keep a policy's choice for several rounds (Re-SpS, "action caching"), or until acceptance drifts."""

from __future__ import annotations

from dataclasses import dataclass, field

from .base import Observation, Outcome, Policy, trees_of
from .spec import TreeSpec


@dataclass
class ActionPersistence:
    """Lets ``policy`` choose every ``rounds`` rounds, and repeats the choice in between.

    It chooses earlier when the running mean of tokens per round differs from its value at the last choice by more than the fraction
    ``band``; 0 disables this. ``policy`` observes every round, so a choice is credited with exactly the rounds it shaped.
    Raises ValueError for fewer than one round.
    """

    policy: Policy
    rounds: int
    band: float = 0.0
    _spec: TreeSpec | None = field(default=None, init=False)
    _rounds_left: int = field(default=0, init=False)
    _mean_tokens: float = field(default=0.0, init=False)
    _mean_at_choice: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"an action persists for 1 round or more, not {self.rounds}")

    @property
    def trees(self) -> tuple[TreeSpec, ...]:
        return trees_of(self.policy)

    def begin(self) -> None:
        self.policy.begin()
        self._spec, self._rounds_left, self._mean_tokens = None, 0, 0.0

    def choose(self, observation: Observation) -> TreeSpec:
        if self._spec is None or self._rounds_left == 0:
            self._spec, self._rounds_left, self._mean_at_choice = self.policy.choose(observation), self.rounds, self._mean_tokens
        self._rounds_left -= 1
        return self._spec

    def observe(self, outcome: Outcome) -> None:
        self.policy.observe(outcome)
        mean = self._mean_tokens
        self._mean_tokens = float(outcome.tokens) if mean == 0.0 else mean + (outcome.tokens - mean) / 8
        if self.band and self._mean_at_choice and abs(self._mean_tokens - self._mean_at_choice) > self.band * self._mean_at_choice:
            self._rounds_left = 0
