"""The table: for each number of running lanes the best fixed tree, as TensorRT-LLM and vLLM have for batch sizes."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Observation, Outcome
from .spec import TreeSpec


@dataclass(frozen=True)
class TablePolicy:
    """Chooses ``by_lanes[lanes - 1]``; the last one for more lanes. One lane is the special case of a fixed tree."""

    by_lanes: tuple[TreeSpec, ...]

    @property
    def trees(self) -> tuple[TreeSpec, ...]:
        return tuple(dict.fromkeys(self.by_lanes))

    def begin(self) -> None:
        """Nothing to do."""

    def choose(self, observation: Observation) -> TreeSpec:
        return self.by_lanes[min(observation.lanes, len(self.by_lanes)) - 1]

    def observe(self, outcome: Outcome) -> None:
        """Nothing to do."""
