"""LTD, Learning to Draft (arXiv 2603.01639): one network stops the growth of a tree, another says how much of it is verified.

Both see the draft's own scores only. A score below `PAD` counts as `PAD`, which also stands where there is no candidate.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import inputs
from .base import Observation, Outcome, PartialTree, Policy, trees_of
from .resps import Action, Net, asked
from .spec import TreeSpec

PAD = -20.0  # summed log-probability
LENGTH_BITS = 16  # log2 of the longest context
STOP, CONTINUE = 0, 1


@dataclass
class Ltd:
    """``tree``: the largest one, (nodes, depth, width); with a ``slow`` policy (Re-SpS, with persistence) what that one chooses bounds the
    tree, and ``tree`` only says how the networks' inputs are laid out. ``every``: levels from one question to the next (3 in the
    paper's code). ``sizes``: the nodes, root included, that the size network chooses from. Without a depth network every tree is grown to
    its bounds, without a size network all its nodes are verified.

    Raises ValueError for bounds or sizes that cannot be, and while a tree grows for logits that are not finite or of another number.
    """

    depth_net: Net | None
    size_net: Net | None
    tree: Action
    every: int = 1
    sizes: tuple[int, ...] = ()
    slow: Policy | None = None
    _largest: TreeSpec = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._largest = TreeSpec(*self.tree)
        if self.every < 1:
            raise ValueError(f"ltd asks every 1 level or more, not {self.every}")
        if self.size_net is not None and (not self.sizes or min(self.sizes) < 1):
            raise ValueError("ltd's size network needs the sizes it chooses from, each 1 or more")

    @property
    def trees(self) -> tuple[TreeSpec, ...]:
        return trees_of(self.slow) if self.slow else (self._largest,)

    def begin(self) -> None:
        if self.slow:
            self.slow.begin()

    def choose(self, observation: Observation) -> TreeSpec:
        return self.slow.choose(observation) if self.slow else self._largest

    def should_expand(self, partial_tree: PartialTree) -> bool:
        if self.depth_net is None or partial_tree.level % self.every:
            return True
        logits = asked("ltd depth", self.depth_net, depth_state(partial_tree, self._largest), 2)
        return bool(logits[CONTINUE] > logits[STOP])

    def num_nodes(self, partial_tree: PartialTree) -> int:
        if self.size_net is None:
            return bounded(partial_tree, partial_tree.spec.nodes, ())
        logits = asked("ltd size", self.size_net, size_state(partial_tree, self._largest), len(self.sizes))
        return bounded(partial_tree, self.sizes[int(np.argmax(logits))], self.sizes)

    def observe(self, outcome: Outcome) -> None:
        if self.slow:
            self.slow.observe(outcome)


def bounded(partial_tree: PartialTree, nodes: int, sizes: tuple[int, ...]) -> int:
    """``nodes`` where the tree has so many, else the largest of ``sizes`` (any number, when empty) that it has, 1 if none."""
    most = min(partial_tree.spec.nodes, len(partial_tree.scores) + 1)
    if nodes <= most or not sizes:
        return min(nodes, most)
    return max((size for size in sizes if size <= most), default=1)


def depth_state(partial_tree: PartialTree, tree: TreeSpec) -> np.ndarray:
    """float32 [width + 2]: the last level's ``tree.width`` best scores, best first, and `_scalars`."""
    state = np.full(inputs.width(inputs.LTD_DEPTH, tree=tree), PAD, np.float32)
    best = -np.sort(-partial_tree.last)[: tree.width]
    state[: len(best)] = np.maximum(best, PAD)
    state[-2:] = _scalars(partial_tree, tree)
    return state


def size_state(partial_tree: PartialTree, tree: TreeSpec) -> np.ndarray:
    """float32 [pool + 2]: all candidates of ``tree`` grown to full depth, each level where it always is, and `_scalars`.

    Of a tree that grew wider or deeper than ``tree`` the surplus is left out; a narrower one leaves places empty.
    """
    state = np.full(inputs.width(inputs.LTD_SIZE, tree=tree), PAD, np.float32)
    width = partial_tree.spec.width
    if width == tree.width:
        kept = partial_tree.scores[: tree.capacity - 1]
        state[: len(kept)] = np.maximum(kept, PAD)
    else:
        for level in range(min(partial_tree.level, tree.depth)):
            start, place = (0 if not level else w + (level - 1) * w**2 for w in (width, tree.width))
            kept = partial_tree.scores[start : start + min(width, tree.width) ** min(level + 1, 2)]
            state[place : place + len(kept)] = np.maximum(kept, PAD)
    state[-2:] = _scalars(partial_tree, tree)
    return state


def _scalars(partial_tree: PartialTree, tree: TreeSpec) -> tuple[float, float]:
    """Both about 0 to 1. The paper repeats the length / 1000 and the depth / 10 to give them weight; these need no copies."""
    return float(np.log2(max(1, partial_tree.length))) / LENGTH_BITS, partial_tree.level / max(1, tree.depth)
