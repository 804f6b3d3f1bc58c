"""The fixed policy: the same tree in every round, as in EAGLE-3; with ``TreeSpec(1, 0, 0)`` it is plain decoding."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Observation, Outcome
from .spec import TreeSpec


@dataclass(frozen=True)
class FixedPolicy:
    """Always chooses ``spec``."""

    spec: TreeSpec

    @property
    def trees(self) -> tuple[TreeSpec, ...]:
        return (self.spec,)

    def begin(self) -> None:
        """Nothing to do."""

    def choose(self, observation: Observation) -> TreeSpec:
        return self.spec

    def observe(self, outcome: Outcome) -> None:
        """Nothing to do."""
