"""LTD, Learning to Draft (arXiv 2603.01639): one network decides when a tree stops growing, another how many of its nodes are verified.

Both read the draft's scores only. `PAD` stands for a missing candidate, and lower scores are raised to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import inputs
from .base import Observation, Outcome, PartialTree, Policy, trees_of
from .resps import Action, Net, network_logits
from .spec import TreeSpec

PAD = -20.0  # summed log-probability
LENGTH_BITS = 16  # log2 of the longest context
STOP, CONTINUE = 0, 1
"""Actions of the depth network, in the order of its logits."""


@dataclass
class Ltd:
    """The LTD policy.

    ``tree``: the largest tree, (nodes, depth, width), which also fixes the layout of the networks' inputs. ``every``: levels between two
    calls of the depth network (3 in the paper's code). ``sizes``: the numbers of nodes, root included, that the size network chooses from.
    ``slow``: a policy that sets each tree's bounds instead of ``tree`` (Re-SpS with action persistence). Without a depth network every tree
    grows to its bounds; without a size network all its nodes are verified.

    Raises ValueError for an invalid ``tree``, ``every`` or ``sizes``, and while a tree grows for logits that are not finite or have the
    wrong length.
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
            raise ValueError(f"ltd runs its depth network every 1 level or more, not {self.every}")
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
        logits = network_logits("ltd depth", self.depth_net, depth_state(partial_tree, self._largest), 2)
        return bool(logits[CONTINUE] > logits[STOP])

    def num_nodes(self, partial_tree: PartialTree) -> int:
        if self.size_net is None:
            return clip_nodes(partial_tree, partial_tree.spec.nodes, ())
        logits = network_logits("ltd size", self.size_net, size_state(partial_tree, self._largest), len(self.sizes))
        return clip_nodes(partial_tree, self.sizes[int(np.argmax(logits))], self.sizes)

    def observe(self, outcome: Outcome) -> None:
        if self.slow:
            self.slow.observe(outcome)


def clip_nodes(partial_tree: PartialTree, nodes: int, sizes: tuple[int, ...]) -> int:
    """``nodes`` if the tree has that many, else the largest of ``sizes`` that it has (any number if empty), 1 if it has none of them."""
    available = min(partial_tree.spec.nodes, len(partial_tree.scores) + 1)
    if nodes <= available or not sizes:
        return min(nodes, available)
    return max((size for size in sizes if size <= available), default=1)


def depth_state(partial_tree: PartialTree, tree: TreeSpec) -> np.ndarray:
    """The depth network's input, float32 [width + 2]: the ``tree.width`` best scores of the last level, descending, and `_scalars`."""
    state = np.full(inputs.width(inputs.LTD_DEPTH, tree=tree), PAD, np.float32)
    best = -np.sort(-partial_tree.last_level_scores)[: tree.width]
    state[: len(best)] = np.maximum(best, PAD)
    state[-2:] = _scalars(partial_tree, tree)
    return state


def size_state(partial_tree: PartialTree, tree: TreeSpec) -> np.ndarray:
    """The size network's input, float32 [pool + 2]: a slot for every candidate of ``tree`` at full depth, and `_scalars`.

    Each level has a fixed range of slots. A tree wider or deeper than ``tree`` loses its surplus; a narrower one leaves slots padded.
    """
    state = np.full(inputs.width(inputs.LTD_SIZE, tree=tree), PAD, np.float32)
    width = partial_tree.spec.width
    if width == tree.width:
        kept = partial_tree.scores[: tree.capacity - 1]
        state[: len(kept)] = np.maximum(kept, PAD)
    else:
        for level in range(min(partial_tree.level, tree.depth)):
            source, target = (0 if not level else w + (level - 1) * w**2 for w in (width, tree.width))
            kept = partial_tree.scores[source : source + min(width, tree.width) ** min(level + 1, 2)]
            state[target : target + len(kept)] = np.maximum(kept, PAD)
    state[-2:] = _scalars(partial_tree, tree)
    return state


def _scalars(partial_tree: PartialTree, tree: TreeSpec) -> tuple[float, float]:
    """Length and level, each scaled to about 0 to 1. The paper repeats length / 1000 and depth / 10 to give them weight; with this
    scaling one copy of each is enough."""
    return float(np.log2(max(1, partial_tree.length))) / LENGTH_BITS, partial_tree.level / max(1, tree.depth)
