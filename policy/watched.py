"""A guard for policies in service: when the tree that was best on this machine is faster, it is used instead."""

from __future__ import annotations

from dataclasses import dataclass, field

from .base import Growing, GrowthPolicy, Observation, Outcome, Policy
from .spec import TreeSpec

WINDOW = 12  # rounds
EVERY = 8  # windows: the last of them is the fixed tree's, to compare with
LOSSES = 3  # comparisons lost in a row
TOLERANCE = 0.97


@dataclass
class Watched:
    """``policy`` until its tokens per second fall behind ``static``'s for several comparisons in a row, from then on ``static``.

    One window of rounds in eight belongs to ``static``, so that both are measured on the same text. A policy that raises ValueError (no
    number in its network) is given up at once. ``pinned`` says why it was; what was learned holds for all requests of a Decoder.
    """

    policy: Policy
    static: TreeSpec
    pinned: str | None = field(default=None, init=False)
    _round: int = field(default=0, init=False)
    _losses: int = field(default=0, init=False)
    _tokens: list[float] = field(default_factory=lambda: [0.0, 0.0], init=False)  # policy, static
    _seconds: list[float] = field(default_factory=lambda: [0.0, 0.0], init=False)

    @property
    def _comparing(self) -> bool:
        return self._round // WINDOW % EVERY == EVERY - 1

    def begin(self) -> None:
        self.policy.begin()

    def choose(self, observation: Observation) -> TreeSpec:
        if self.pinned or self._comparing:
            return self.static
        try:
            return self.policy.choose(observation)
        except ValueError as problem:
            self.pinned = str(problem)
            return self.static

    def deepen(self, growing: Growing) -> bool:
        """As the policy says, if it is one that looks at growing trees; a fixed tree grows to its depth."""
        asks = not self.pinned and not self._comparing and isinstance(self.policy, GrowthPolicy)
        try:
            return not asks or self.policy.deepen(growing)  # type: ignore[attr-defined]
        except ValueError as problem:
            self.pinned = str(problem)
            return True

    def budget(self, growing: Growing) -> int:
        """As the policy says, else everything that was allowed."""
        asks = not self.pinned and not self._comparing and isinstance(self.policy, GrowthPolicy)
        try:
            return self.policy.budget(growing) if asks else growing.spec.nodes  # type: ignore[attr-defined]
        except ValueError as problem:
            self.pinned = str(problem)
            return growing.spec.nodes

    def observe(self, outcome: Outcome) -> None:
        if self.pinned:
            return
        arm = int(self._comparing)
        if not arm:
            self.policy.observe(outcome)
        self._tokens[arm] += outcome.tokens
        self._seconds[arm] += outcome.seconds
        self._round += 1
        if self._round % (WINDOW * EVERY) == 0:
            self._compare()

    def _compare(self) -> None:
        rates = [tokens / seconds if seconds else 0.0 for tokens, seconds in zip(self._tokens, self._seconds, strict=True)]
        self._losses = self._losses + 1 if rates[0] < TOLERANCE * rates[1] else 0
        if self._losses >= LOSSES:
            self.pinned = f"{rates[0]:.1f} tokens/s against {rates[1]:.1f} of the tree {self.static}"
        self._tokens = [value / 2 for value in self._tokens]  # older windows count less
        self._seconds = [value / 2 for value in self._seconds]
