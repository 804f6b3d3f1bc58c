"""A draft tree as arrays, and the acceptance rule, which is the same for greedy decoding and for sampling. Pure numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

Source = Literal["draft", "lookup", "forced"]
"""Where guesses come from: the draft model, earlier text, or a constraint that leaves nothing else."""


@dataclass(frozen=True)
class DeviceTree:
    """A tree of ``nodes`` rows that a drafter left in device memory. The host reads it only after it was verified."""

    nodes: int


@dataclass(frozen=True)
class Tree:
    """The rows of one target pass. Row 0 is the root: the last chosen token, which is not in the cache yet.

    ``tokens``, ``parent``, ``depth``: int64 [n]. ``parent[0]`` is -1, and parents come before their children. ``mask``: bool [n, n]; row i
    is true at i and at its ancestors. ``source``: where the nodes below the root come from.
    """

    tokens: np.ndarray
    parent: np.ndarray
    depth: np.ndarray
    mask: np.ndarray
    source: Source = "draft"

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def from_parents(cls, tokens: Sequence[int], parent: Sequence[int], source: Source = "draft") -> Tree:
        """The tree with these tokens and parents. Raises ValueError unless it is one tree with parents first and distinct siblings."""
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
        tree = cls(np.asarray(tokens, np.int64), np.asarray(parent, np.int64), depth, mask, source)
        if len(tree._children) != count - 1:
            raise ValueError("two siblings have the same token")
        return tree

    @classmethod
    def chain(cls, tokens: Sequence[int], source: Source = "draft") -> Tree:
        """The tree in which each token is the child of the one before, as in a prefill chunk."""
        count = len(tokens)
        order = np.arange(count, dtype=np.int64)
        return cls(np.asarray(tokens, np.int64), order - 1, order, np.tri(count, dtype=bool), source)

    @cached_property
    def _children(self) -> dict[tuple[int, int], int]:
        edges = zip(self.parent[1:].tolist(), self.tokens[1:].tolist(), strict=True)
        return {edge: node for node, edge in enumerate(edges, 1)}

    def child(self, node: int, token: int) -> int | None:
        """The child of ``node`` with this token, None if there is none."""
        return self._children.get((node, token))


@dataclass(frozen=True)
class Acceptance:
    """``path``: accepted rows from the root down. ``tokens``: the target's token after each of them; the last one is the bonus token."""

    path: tuple[int, ...]
    tokens: tuple[int, ...]


def accept(tree: Tree, choose: Callable[[int], int], max_tokens: int | None = None) -> Acceptance:
    """Descend the tree along the target's choices, for at most ``max_tokens`` tokens. ``choose(row)``: the target's token after a row.

    The tree is deterministic given the committed tokens. So drawing from the target and descending when the draw is a child has exactly the
    distribution of EAGLE's accept/renormalise rule (arXiv 2401.15077). It is lossless for greedy decoding and for sampling.
    """
    path, tokens = [0], [choose(0)]
    while len(tokens) != max_tokens and (node := tree.child(path[-1], tokens[-1])) is not None:
        path.append(node)
        tokens.append(choose(node))
    return Acceptance(tuple(path), tuple(tokens))
