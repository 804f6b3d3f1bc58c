"""What the loop asks of a drafter; n-gram look-up and EAGLE-3 stand behind the same verbs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from policy import GrowthPolicy, LatencyModel, TreeSpec

from ..decoding.sampling import Scores
from ..decoding.tree import GrownTree, Tree


class Drafter(Protocol):
    """Proposes trees. Must be deterministic given the committed tokens: that is what makes `accept` lossless."""

    def begin(self, tokens: Sequence[int] = ()) -> int:
        """A new request. ``tokens`` begin its prompt and are what the target still holds of it. Returns how many of them need not be told
        again; nothing else is remembered of earlier requests."""

    def extend(self, tokens: Sequence[int], scores: Scores, rows: Sequence[int]) -> None:
        """Tokens were committed; ``scores.features[rows]`` are their features. ``scores`` is valid during this call only."""

    def lookup(self, root: int, most: int) -> Tree | None:
        """A tree of at most ``most`` rows that needs no policy and is better than what `draft` could do now; None mostly."""

    def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree | GrownTree:
        """A tree of at most ``spec`` whose root is ``root``, the token after the committed ones. ``growth`` is asked on the way, if the
        drafter grows its trees level by level."""


@dataclass(frozen=True)
class DrafterParts:
    """What a drafter may be made of. ``eagle``: the EAGLE-3 draft model's drafter, where the kind uses one; ``latency``: seconds of rounds
    here, in ratios that hold; ``fixed_tree``: the tree that is drafted most."""

    eagle: Drafter | None
    latency: LatencyModel
    fixed_tree: TreeSpec


class NoDrafter:
    """Plain decoding: the tree is its root."""

    def begin(self, tokens: Sequence[int] = ()) -> int:
        return len(tokens)

    def extend(self, tokens: Sequence[int], scores: Scores, rows: Sequence[int]) -> None:
        """Nothing is kept."""

    def lookup(self, root: int, most: int) -> None:
        """Never."""

    def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree:
        return Tree.chain([root])


def make(parts: DrafterParts) -> Drafter:
    """Plain decoding."""
    return NoDrafter()
