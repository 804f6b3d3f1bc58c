"""Drafts of answers with a constraint: what it forces comes first, and what it excludes is not verified."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policy import FixedPolicy, GrowthPolicy, Policy, TreeSpec

from ..decoding.drafter import Drafter
from ..decoding.sampling import TargetOutput
from ..decoding.tree import DeviceTree, Tree
from ..drafters.suffix import SuffixDrafter
from .state import ConstraintState

MOST_ROWS = 12
"""Of a chain of forced tokens: as many as the longest lookup has."""


class ConstrainedDrafter:
    """Another drafter's trees, as far as ``constraint`` allows them. Forced tokens are a chain that needs no drafting."""

    def __init__(self, drafter: Drafter, constraint: ConstraintState) -> None:
        self._drafter, self._constraint = drafter, constraint

    def begin(self, tokens: Sequence[int] = ()) -> int:
        return self._drafter.begin(tokens)

    def extend(self, tokens: Sequence[int], output: TargetOutput, rows: Sequence[int]) -> None:
        self._drafter.extend(tokens, output, rows)

    def lookup(self, root: int, max_rows: int) -> Tree | None:
        if max_rows > 1 and (forced := self._constraint.forced()):
            return Tree.chain([root, *forced][: min(max_rows, MOST_ROWS)], "forced")
        found = self._drafter.lookup(root, max_rows)
        if found is None:
            return None
        tree = allowed_part(found, self._constraint)
        if isinstance(self._drafter, SuffixDrafter):
            self._drafter.shorten(len(tree))
        return tree if len(tree) > 1 else None

    def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree | DeviceTree:
        tree = self._drafter.draft(root, spec, growth)
        return allowed_part(tree, self._constraint) if isinstance(tree, Tree) else tree  # the host cannot change a tree on a device


def constrained_drafter(drafter: Drafter, constraint: ConstraintState | None, policy: Policy | None) -> Drafter:
    """``drafter`` itself without a constraint, and for plain decoding, which drafts nothing."""
    plain = isinstance(policy, FixedPolicy) and policy.spec.nodes == 1
    return drafter if constraint is None or plain else ConstrainedDrafter(drafter, constraint)


def allowed_part(tree: Tree, constraint: ConstraintState) -> Tree:
    """The tree without the nodes that ``constraint`` excludes after the root, and those below them."""
    count = len(tree)
    kept = np.zeros(count, dtype=bool)
    kept[0] = True
    for leaf in sorted(set(range(1, count)) - set(tree.parent.tolist())):
        path = np.flatnonzero(tree.mask[leaf])[1:]
        kept[path[: constraint.allowed(tree.tokens[path].tolist())]] = True
    if kept.all():
        return tree
    rows = np.flatnonzero(kept)
    place = np.cumsum(kept) - 1
    parent = np.where(rows > 0, place[tree.parent[rows]], -1)
    return Tree(tree.tokens[rows], parent, tree.depth[rows], tree.mask[np.ix_(rows, rows)], tree.source)
