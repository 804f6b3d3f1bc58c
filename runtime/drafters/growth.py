"""Growing a draft tree on the host: the rules of the graphs `expand` and `tree` (EAGLE-2's algorithm) in numpy."""

from __future__ import annotations

import math

import numpy as np

from policy import PartialTree, TreeSpec

from ..decoding.tree import Tree

# As in export/graphs/tree_growth.py: a child always scores lower than its parent, so the best candidates form a tree; NaN becomes LEAST.
LEVEL_PENALTY = np.float32(1e-5)
LEAST = np.float32(-1e4)


class GrowingTree:
    """The tree of one lane while it grows. ``beam_scores`` and ``beam_tokens`` [w], ``beam_hidden`` [w, H] and ``beam_mask``
    [w, 1 + w * level] are the next draft pass's rows: the likeliest candidates of the last level. Column 0 of the mask is the last
    committed row, which all attend to."""

    def __init__(self, root: int, spec: TreeSpec, length: int) -> None:
        self.spec, self.level, self._length = spec, 0, length
        self.finite = True  # whether all scores so far are numbers
        self._scores, self._tokens, self._parents = [np.zeros(1, np.float32)], [np.array([root])], [np.array([-1])]
        self._count = 1  # candidates so far, the root included
        self.beam_scores, self._beam_ids = np.zeros(1, np.float32), np.zeros(1, np.int64)
        self.beam_mask = np.ones((1, 1), dtype=bool)
        self.beam_tokens, self.beam_hidden = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)

    def add(self, log_probs: np.ndarray, candidates: np.ndarray, next_hidden: np.ndarray) -> None:
        """Add a level below the beams: ``log_probs`` and ``candidates`` [b, k], ``next_hidden`` [b, H]; b is 1 below the root."""
        width = self.spec.width
        self.finite = self.finite and not math.isnan(np.add.reduce(log_probs, axis=None))
        own = log_probs[:, :width] - LEVEL_PENALTY
        own = np.where(own > LEAST, own, LEAST)  # NaN is not greater
        summed = (self.beam_scores[:, None] + own).reshape(-1)
        tokens = candidates[:, :width].flatten()  # a copy: the next pass overwrites the engine's
        self._scores.append(summed)
        self._tokens.append(tokens)
        self._parents.append(np.repeat(self._beam_ids, width))
        chosen = np.argsort(-summed, kind="stable")[:width]  # the lowest index wins ties
        source = chosen // width
        self.beam_scores, self._beam_ids = summed[chosen], self._count + chosen
        self.beam_tokens, self.beam_hidden = tokens[chosen], next_hidden[source]
        self.beam_mask = np.concatenate([self.beam_mask[source], np.eye(width, dtype=bool)], axis=1)
        self._count += len(summed)
        self.level += 1

    @property
    def scores(self) -> np.ndarray:
        """Summed log-probabilities of all candidates, without the root, level by level."""
        return np.concatenate(self._scores[1:])

    @property
    def pool(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All candidates, the root first: summed log-probabilities, tokens and the entries of their parents, each [p]."""
        scores, tokens, parents = map(np.concatenate, (self._scores, self._tokens, self._parents))
        return scores, tokens, parents

    @property
    def partial(self) -> PartialTree:
        """What a GrowthPolicy reads."""
        return PartialTree(self.spec, self.level, self.scores, self._length)

    def tree(self, nodes: int) -> Tree:
        """The root and the best ``nodes`` - 1 candidates."""
        scores, tokens, parents = self.pool
        chosen = np.sort(np.argsort(-scores, kind="stable")[:nodes])
        place = np.full(len(scores) + 1, -1)
        place[chosen] = np.arange(len(chosen))
        parent = place[parents[chosen]]
        depth, mask = np.zeros(len(chosen), np.int64), np.eye(len(chosen), dtype=bool)
        for node in range(1, len(chosen)):
            depth[node] = depth[parent[node]] + 1
            mask[node] |= mask[parent[node]]
        return Tree(tokens[chosen], parent, depth, mask)
