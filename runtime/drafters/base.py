"""The drafter protocol: what the decoding loop calls in every round. Also NoDrafter, which is plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from policy import GrowthPolicy, LatencyModel, TreeSpec

from ..decoding.sampling import TargetOutput
from ..decoding.tree import DeviceTree, Tree


class Drafter(Protocol):
    """Proposes trees. A tree must be deterministic given the committed tokens; `accept` is lossless only then."""

    def begin(self, tokens: Sequence[int] = ()) -> int:
        """Start a request. ``tokens``: the prefix of its prompt that the target's cache holds. Returns how many of them the drafter keeps;
        `extend` is called for all others. Nothing else of earlier requests may be kept."""

    def extend(self, tokens: Sequence[int], output: TargetOutput, rows: Sequence[int]) -> None:
        """``tokens`` were committed. ``output.features[rows]`` are their features; ``output`` is valid during this call only."""

    def lookup(self, root: int, max_rows: int) -> Tree | None:
        """A tree of at most ``max_rows`` rows copied from earlier text, if that promises more than `draft` would; else None. The policy is
        not involved."""

    def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree | DeviceTree:
        """A tree of at most ``spec``. ``root``: the token after the committed ones. ``growth``: decides between levels; only for
        drafters that grow their trees level by level."""


@dataclass(frozen=True)
class DrafterParts:
    """What a drafter may be built from.

    ``eagle``: the drafter of the EAGLE-3 model, None if the kind uses no draft model. ``latency``: of this machine, or a default; only its
    ratios matter. ``fixed_tree``: the best known fixed tree.
    """

    eagle: Drafter | None
    latency: LatencyModel
    fixed_tree: TreeSpec


class NoDrafter:
    """Plain decoding: every tree is its root."""

    def begin(self, tokens: Sequence[int] = ()) -> int:
        return len(tokens)

    def extend(self, tokens: Sequence[int], output: TargetOutput, rows: Sequence[int]) -> None:
        """Nothing to do."""

    def lookup(self, root: int, max_rows: int) -> None:
        """Never proposes anything."""

    def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree:
        return Tree.chain([root])


def make(parts: DrafterParts) -> Drafter:
    """The drafter "none"."""
    return NoDrafter()
