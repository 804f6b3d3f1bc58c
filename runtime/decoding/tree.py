"""A draft tree as arrays, and the one acceptance rule for greedy and sampled decoding. Pure numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class GrownTree:
    """A tree of ``nodes`` rows that a drafter left in the device's memory. The host sees it when it has been verified."""

    nodes: int


@dataclass(frozen=True)
class Tree:
    """Rows of one target pass. Row 0 is the root: the last token chosen, not yet in the cache.

    tokens, parent, depth: int64 [n]; parent[0] is -1, parents come before children. mask: bool [n, n], row i true at i and its ancestors.
    """

    tokens: np.ndarray
    parent: np.ndarray
    depth: np.ndarray
    mask: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def from_parents(cls, tokens: Sequence[int], parent: Sequence[int]) -> Tree:
        """Build from each node's token and parent; raises ValueError unless it is one tree, parents first, siblings distinct."""
        count = len(tokens)
        if count == 0 or len(parent) != count or parent[0] != -1:
            raise ValueError("a tree needs one parent per token and a root with parent -1")
        depth = np.zeros(count, np.int64)
        mask = np.eye(count, dtype=bool)
        for node in range(1, count):
            above = parent[node]
            if not 0 <= above < node:
                raise ValueError(f"node {node} has parent {above}: parents come first")
            depth[node] = depth[above] + 1
            mask[node] |= mask[above]
        tree = cls(np.asarray(tokens, np.int64), np.asarray(parent, np.int64), depth, mask)
        if len(tree._children) != count - 1:
            raise ValueError("two siblings carry the same token")
        return tree

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> Tree:
        """Each token the child of the one before: a prefill chunk."""
        count = len(tokens)
        order = np.arange(count, dtype=np.int64)
        return cls(np.asarray(tokens, np.int64), order - 1, order, np.tri(count, dtype=bool))

    @cached_property
    def _children(self) -> dict[tuple[int, int], int]:
        edges = zip(self.parent[1:].tolist(), self.tokens[1:].tolist(), strict=True)
        return {edge: node for node, edge in enumerate(edges, 1)}

    def child(self, node: int, token: int) -> int | None:
        """The child of ``node`` that carries ``token``."""
        return self._children.get((node, token))


@dataclass(frozen=True)
class Verdict:
    """``path``: accepted rows from the root down. ``tokens``: the token the target chose at each of them; the last one is the bonus."""

    path: tuple[int, ...]
    tokens: tuple[int, ...]


def accept(tree: Tree, choose: Callable[[int], int], most: int | None = None) -> Verdict:
    """Walk down the tree along the target's own choices. ``choose(row)`` is the target's token after that row; ``most``: tokens wanted.

    The draft proposes deterministically, so drawing from the target and descending if the draw is a child has exactly the distribution of
    EAGLE's accept/renormalise rule (arXiv 2401.15077): lossless for greedy and for sampling alike.
    """
    path, tokens = [0], [choose(0)]
    while len(tokens) != most and (node := tree.child(path[-1], tokens[-1])) is not None:
        path.append(node)
        tokens.append(choose(node))
    return Verdict(tuple(path), tuple(tokens))
