"""One tree for ever: EAGLE-3's policy, and plain decoding with ``TreeSpec(1, 0, 0)``."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Observation, Outcome
from .spec import TreeSpec


@dataclass(frozen=True)
class FixedPolicy:
    """Always ``spec``."""

    spec: TreeSpec

    @property
    def trees(self) -> tuple[TreeSpec, ...]:
        return (self.spec,)

    def begin(self) -> None:
        """Nothing is kept."""

    def choose(self, observation: Observation) -> TreeSpec:
        return self.spec

    def observe(self, outcome: Outcome) -> None:
        """Nothing to learn."""
