"""The drafter protocol: what the decoding loop calls in every round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from policy import GrowthPolicy, TreeSpec

from .sampling import TargetOutput
from .tree import DeviceTree, Tree


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
