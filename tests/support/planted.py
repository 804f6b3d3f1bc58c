"""Drafters for tests that know the answer: they put it into random trees, so that accepted paths cross branches, gaps and siblings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policy import GrowthPolicy, TreeSpec
from runtime.decoding.sampling import TargetOutput
from runtime.decoding.tree import Tree


class PlantedDrafter:
    """Drafts random trees of exactly ``spec.nodes`` rows. One path in each is a random part of the correct continuation.

    Random nodes come before, between and after the correct ones, so the correct path has scattered slots. ``answer``: the tokens of plain
    decoding after a prompt of ``prompt_length`` tokens. After its end, or if it is empty, trees are random only.
    """

    def __init__(self, prompt_length: int, answer: Sequence[int], vocab: int, seed: int) -> None:
        self._prompt_length, self._answer, self._vocab = prompt_length, list(answer), vocab
        self._random = np.random.default_rng(seed)
        self.begin()

    def begin(self, tokens: Sequence[int] = ()) -> int:
        self._committed = len(tokens)
        return len(tokens)

    def extend(self, tokens: Sequence[int], output: TargetOutput, rows: Sequence[int]) -> None:
        self._committed += len(tokens)

    def lookup(self, root: int, max_rows: int) -> None:
        """Never proposes anything."""

    def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree:
        after_root = self._committed - self._prompt_length + 1
        true_length = int(self._random.integers(0, min(spec.depth, spec.nodes - 1) + 1))
        truth = self._answer[after_root : after_root + true_length]
        tokens, parent, depth, tip = [root], [-1], [0], 0
        edges: set[tuple[int, int]] = set()
        while len(tokens) < spec.nodes:
            if truth and (spec.nodes - len(tokens) == len(truth) or self._random.random() < 0.3):
                above, token = tip, truth.pop(0)
                tip = len(tokens)
            else:
                above = int(self._random.choice([node for node in range(len(tokens)) if depth[node] < spec.depth]))
                token = int(self._random.integers(self._vocab))
                if (above, token) in edges or (truth and (above, token) == (tip, truth[0])):
                    continue
            edges.add((above, token))
            tokens.append(token)
            parent.append(above)
            depth.append(depth[above] + 1)
        return Tree.from_parents(tokens, parent)


class DummyRowDrafter:
    """Plain decoding with a useless second row, so that attention is computed as in a tree pass."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab

    def begin(self, tokens: Sequence[int] = ()) -> int:
        return len(tokens)

    def extend(self, tokens: Sequence[int], output: TargetOutput, rows: Sequence[int]) -> None:
        """Nothing to do."""

    def lookup(self, root: int, max_rows: int) -> None:
        """Never proposes anything."""

    def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree:
        # The second row may be accepted by chance; it is then correct.
        return Tree.from_parents([root, (root + 1) % self._vocab], [-1, 0])
