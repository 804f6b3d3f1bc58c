"""The policy protocol: the values that the decoding loop and a policy exchange, and the methods that a policy implements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .spec import TreeSpec

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Observation:
    """What a policy may read before a round.

    ``length``: committed tokens. ``room``: tokens that may still be generated. ``look``: reads ``features``. ``lanes``: requests of the
    round, this one included. ``waiting``: requests that wait until they can decode.
    """

    length: int
    room: int
    look: Callable[[], np.ndarray]
    lanes: int = 1
    waiting: int = 0

    @property
    def features(self) -> np.ndarray:
        """The three captured hidden states of the target at the last accepted position, [3H] (the state of Re-SpS).

        A view that is valid until the next pass. On a device, reading it costs a copy.
        """
        return self.look()


@dataclass(frozen=True)
class Outcome:
    """The result of one round: the requested tree, verified rows, new tokens (bonus token included), and seconds of the whole round.
    ``pass_seconds``: of its pass; None if other requests shared it, or if a device runs it while the host goes on. ``rest_seconds``: of
    all else but the choice of tokens. ``unread``: committed tokens that the draft had to read before it drafted.
    """

    spec: TreeSpec
    nodes: int
    tokens: int
    seconds: float
    pass_seconds: float | None = None
    rest_seconds: float = 0.0
    unread: int = 0


@dataclass(frozen=True)
class PartialTree:
    """A tree between two levels.

    ``level``: number of levels so far. ``scores``: summed log-probabilities of all candidates so far, float32, level by level (``width`` in
    the first level, ``width**2`` in each later one); a view. ``length``: committed tokens.
    """

    spec: TreeSpec
    level: int
    scores: np.ndarray
    length: int

    @property
    def last_level_scores(self) -> np.ndarray:
        """The scores of the last level's candidates."""
        return self.scores[-(self.spec.width ** min(self.level, 2)) :]


class Policy(Protocol):
    """Chooses a tree for every round and observes what it brought, before it chooses the next one.

    A policy may also have an attribute ``trees``: the largest trees it will choose. The runtime prepares for them before the first request.
    """

    def begin(self) -> None:
        """Start a new request."""

    def choose(self, observation: Observation) -> TreeSpec:
        """The tree for the next round."""

    def observe(self, outcome: Outcome) -> None:
        """Learn from the round that just ended."""


@runtime_checkable
class GrowthPolicy(Policy, Protocol):
    """A policy that also reads the tree while it grows, and decides within the bounds that ``choose`` gave (LTD's two decisions). A draft
    that guesses all levels in one pass asks for the number of nodes only.

    On a device, every such read costs a copy.
    """

    def should_expand(self, partial_tree: PartialTree) -> bool:
        """Whether to draft one more level."""

    def num_nodes(self, partial_tree: PartialTree) -> int:
        """How many nodes to verify, root included: 1 to ``partial_tree.spec.nodes``."""


def trees_of(policy: Policy) -> tuple[TreeSpec, ...]:
    """The largest trees that ``policy`` says it will choose; empty if it does not say."""
    return tuple(getattr(policy, "trees", ()))
