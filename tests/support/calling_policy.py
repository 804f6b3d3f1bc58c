"""A policy that does something in the middle of a request."""

from __future__ import annotations

from collections.abc import Callable

from policy import Observation, Outcome, TreeSpec


class CallingPolicy:
    """Calls ``action`` in its third round. ``rounds``: rounds so far."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action, self.rounds = action, 0

    def begin(self) -> None:
        """Nothing to do."""

    def choose(self, observation: Observation) -> TreeSpec:
        self.rounds += 1
        if self.rounds == 3:
            self._action()
        return TreeSpec(4, 3, 1)

    def observe(self, outcome: Outcome) -> None:
        """Nothing to do."""
