"""The policy protocol: what tree to grow next, learned from what the last ones brought."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .spec import TreeSpec

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Observation:
    """What a policy may look at before a round: ``length`` committed tokens, ``room`` for this many more, and ``features``."""

    length: int
    room: int
    look: Callable[[], np.ndarray]

    @property
    def features(self) -> np.ndarray:
        """The three captured target vectors of the last accepted position, [3H] (Re-SpS's state); a view, valid until the next pass.
        Looking costs a copy when they are on a device."""
        return self.look()


@dataclass(frozen=True)
class Outcome:
    """What one round brought: the tree asked for, rows verified, tokens gained (bonus included) and the whole round's seconds."""

    spec: TreeSpec
    nodes: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class PartialTree:
    """A tree between two levels. ``level``: how many it has; ``scores``: summed log-probabilities of all candidates so far, float32, level
    by level (width, then width**2 each), a view; ``length``: committed tokens."""

    spec: TreeSpec
    level: int
    scores: np.ndarray
    length: int

    @property
    def last(self) -> np.ndarray:
        """The candidates of the last level."""
        return self.scores[-(self.spec.width ** min(self.level, 2)) :]


class Policy(Protocol):
    """Verify, then observe, then choose: an action is credited with exactly the rounds it shaped.

    A policy may also have ``trees``, the largest trees it will choose: the runtime prepares for them before the first request.
    """

    def begin(self) -> None:
        """A new request: forget the last one."""

    def choose(self, observation: Observation) -> TreeSpec:
        """The tree for the next round."""

    def observe(self, outcome: Outcome) -> None:
        """Learn from the round that just ended."""


@runtime_checkable
class GrowthPolicy(Policy, Protocol):
    """Looks at the tree while it grows, within what ``choose`` allowed (LTD's two decisions). On a device every look is a copy."""

    def should_expand(self, partial_tree: PartialTree) -> bool:
        """Whether to draft one more level."""

    def num_nodes(self, partial_tree: PartialTree) -> int:
        """How many nodes to verify, root included: 1 to ``partial_tree.spec.nodes``."""


def trees_of(policy: Policy) -> tuple[TreeSpec, ...]:
    """The largest trees that ``policy`` says it will choose; empty where it does not say."""
    return tuple(getattr(policy, "trees", ()))
