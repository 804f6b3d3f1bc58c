"""Plain decoding as a drafter: nothing is drafted."""

from __future__ import annotations

from collections.abc import Sequence

from policy import GrowthPolicy, TreeSpec

from ..decoding.drafter import Drafter
from ..decoding.sampling import TargetOutput
from ..decoding.tree import Tree
from .base import DrafterParts


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
