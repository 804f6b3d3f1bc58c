"""One acceptance rule for greedy and sampled decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .tree import Tree


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
