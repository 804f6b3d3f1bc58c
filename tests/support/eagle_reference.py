"""EAGLE's tree construction in plain Python, with the reference implementation's data layout: the expected output of our two tree graphs.

The pool is flat and has no root. Parents are kept per block of ``width`` candidates, counted from 1 (0 is the root). Only the level penalty
is shared with export.graphs.tree_growth, so a mistake there shows as a difference.
Also here: the trees of an exported draft by dense passes, and a wrapper of a model's drafter that records what is compared with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.graphs.tree_growth import LEVEL_PENALTY
from policy import GrowthPolicy, TreeSpec
from runtime import Decoder
from runtime.decoding.drafter import Drafter
from runtime.decoding.sampling import TargetOutput
from runtime.decoding.tree import Tree
from runtime.drafters.draft_model import ModelDrafter


@dataclass(frozen=True)
class Level:
    """The input of the reference's next draft pass. ``source``: the row of the last pass that each beam continues.

    ``mask``: one row per beam, one column per row drafted since the root.
    """

    tokens: list[int]
    source: list[int]
    mask: list[list[bool]]


Forward = Callable[[Level], tuple[np.ndarray, np.ndarray]]
"""log_probs float32 and candidates, [width, width], of one draft pass"""


@dataclass(frozen=True)
class ReferencePool:
    """All candidates in the order they were added, before the rerank."""

    width: int
    scores: list[np.float32]
    tokens: list[int]
    block_parents: list[int]
    levels: list[Level]

    def tree(self, root: int, nodes: int) -> Tree:
        """The rerank, then the mask by walking the selection in order."""
        selected = sorted(best(self.scores, nodes - 1))
        parent = [-1]
        for place in selected:
            above = self.block_parents[place // self.width]
            parent.append(0 if above == 0 else 1 + selected.index(above - 1))  # ValueError: the selection is not closed
        mask = np.eye(nodes, dtype=bool)
        mask[:, 0] = True
        for row in range(1, nodes):
            mask[row] |= mask[parent[row]]
        tokens = np.array([root, *(self.tokens[place] for place in selected)])
        return Tree(tokens, np.array(parent), mask.sum(axis=1) - 1, mask)


def best(scores: Sequence[np.float32], count: int) -> list[int]:
    """Indices of the highest scores, highest first; among equals the lowest index."""
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:count]


def grow(first: tuple[np.ndarray, np.ndarray], forward: Forward, depth: int, width: int) -> ReferencePool:
    """``first``: log_probs and candidates [width] below the root. The papers' depth is ours less one."""
    penalty = np.float32(LEVEL_PENALTY)
    above = [np.float32(each) - penalty for each in first[0]]
    scores, tokens, block_parents = list(above), [int(each) for each in first[1]], [0]
    levels = [Level(list(tokens), [0] * width, np.eye(width, dtype=bool).tolist())]
    chosen = list(range(width))
    for turn in range(depth - 1):
        bias = 1 + width**2 * max(0, turn - 1) + (width if turn > 0 else 0)
        block_parents += [bias + each for each in chosen]
        log_probs, candidates = forward(levels[-1])
        summed = [above[beam] + (np.float32(log_probs[beam, rank]) - penalty) for beam in range(width) for rank in range(width)]
        scores += summed
        tokens += [int(each) for each in candidates.ravel()]
        chosen = best(summed, width)
        above = [summed[each] for each in chosen]
        source = [each // width for each in chosen]
        mask = [[*levels[-1].mask[each], *np.eye(width, dtype=bool)[beam].tolist()] for beam, each in enumerate(source)]
        levels.append(Level([int(candidates.ravel()[each]) for each in chosen], source, mask))
    return ReferencePool(width, scores, tokens, block_parents, levels)


def paths(tree: Tree) -> set[tuple[int, ...]]:
    """Every node as the tokens from the root down to it: a tree without the order of its rows."""
    return {tuple(tree.tokens[row].tolist()) for row in tree.mask}


def expect_well_formed(tree: Tree, root: int, spec: TreeSpec) -> None:
    """Expects a tree of exactly ``spec.nodes``: parents first, distinct siblings, consistent depth and mask, the allowed width."""
    rebuilt = Tree.from_parents(tree.tokens.tolist(), tree.parent.tolist())
    assert tree.tokens[0] == root
    assert len(tree) == spec.nodes
    np.testing.assert_array_equal(tree.depth, rebuilt.depth)
    np.testing.assert_array_equal(tree.mask, rebuilt.mask)
    assert tree.depth.max() <= spec.depth
    if len(tree) > 1:
        assert np.bincount(tree.parent[1:]).max() <= spec.width


def expect_same(actual: Tree, expected: Tree) -> None:
    """Expects equal arrays."""
    for name in ("tokens", "parent", "depth", "mask"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), err_msg=name)


class ReferenceDrafter:
    """Drafts trees with an exported draft, without cache, shared buffers and chunks: every level recomputes all rows in one dense pass."""

    def __init__(self, directory: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # it warns that the cache is not shared between input and output
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
        self._fuse, self._draft = (
            onnxruntime.InferenceSession(str(directory / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
            for name in ("fuse", "draft")
        )

    def tree(self, tokens: Sequence[int], features: np.ndarray, root: int, spec: TreeSpec) -> Tree:
        """The tree after the committed ``tokens`` with their ``features`` [n, 3H]."""
        committed, width = len(tokens), spec.width
        rows, positions, mask = [*tokens[1:], root], list(range(committed)), np.tri(committed, dtype=bool)
        (hidden,) = self._fuse.run(None, {"features": features[None], "rows": np.arange(len(features))})
        following, first, below_root = self._pass(rows, hidden, positions, mask, 1, width)
        last = following[:, -1:]

        def forward(level: Level) -> tuple[np.ndarray, np.ndarray]:
            nonlocal hidden, last, mask
            rows.extend(level.tokens)
            hidden = np.concatenate([hidden, last[:, level.source]], axis=1)
            positions.extend([positions[-1] + 1] * width)
            beams = np.concatenate([np.ones((width, committed), bool), np.array(level.mask)], axis=1)
            mask = np.concatenate([np.pad(mask, ((0, 0), (0, width))), beams])
            following, log_probs, candidates = self._pass(rows, hidden, positions, mask, width, width)
            last = following[:, -width:]
            return log_probs, candidates

        return grow((first[0], below_root[0]), forward, spec.depth, width).tree(root, spec.nodes)

    def _pass(
        self, tokens: Sequence[int], hidden: np.ndarray, positions: Sequence[int], mask: np.ndarray, head_rows: int, width: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """next_hidden of all rows; log_probs and candidates of the last ``head_rows``."""
        count = len(tokens)
        caches = {each.name: each.shape for each in self._draft.get_inputs() if each.name.startswith("past.")}
        feeds = {
            "tokens": np.array([tokens]),
            "depth": np.array([positions]),
            "hidden": hidden,
            "tree_mask": mask,
            "past": np.zeros(1, np.int64),
            "write": np.zeros(1, np.int64),
            "slots": np.arange(count),
            "rows": np.arange(count - head_rows, count),
            "beam": np.arange(width),
            **{name: np.zeros([count if size == "span" else size for size in shape], np.float32) for name, shape in caches.items()},
        }
        following, log_probs, candidates = self._draft.run(["next_hidden", "log_probs", "candidates"], feeds)
        return following, log_probs, candidates


@dataclass(frozen=True)
class Drafted:
    """A tree, and after how many committed tokens it was drafted."""

    committed: int
    root: int
    spec: TreeSpec
    tree: Tree


class RecordingDrafter:
    """Wraps the drafter of a Decoder's model and records the committed tokens, their features and the drafted trees.

    ``planted``: a drafter whose trees are returned instead, so that long paths are committed which EAGLE did not propose. ``spoil``:
    whether to overwrite all features with NaN.
    """

    def __init__(self, decoder: Decoder, monkeypatch: pytest.MonkeyPatch, planted: Drafter | None = None, spoil: bool = False) -> None:
        eagle = decoder.models.model_drafter
        assert isinstance(eagle, ModelDrafter)
        self.eagle, self._target, self._planted, self._spoil = eagle, decoder.models.target, planted, spoil
        monkeypatch.setattr(decoder, "models", replace(decoder.models, drafter=self))

    def begin(self, tokens: Sequence[int] = ()) -> int:
        """Keeps nothing, so that `extend` gets every prompt from its first token."""
        self.tokens: list[int] = []
        self.features: list[np.ndarray] = []
        self.drafted: list[Drafted] = []
        self.longest_path = 0
        for each in (self.eagle, self._planted):
            if each:
                each.begin()
        return 0

    def extend(self, tokens: Sequence[int], output: TargetOutput, rows: Sequence[int]) -> None:
        if self._spoil:
            output.features[:] = np.nan
        self.tokens.extend(tokens)
        self.features.extend(output.features[list(rows)].astype(np.float32))
        self.longest_path = max(self.longest_path, len(tokens)) if self.drafted else 0
        for each in (self.eagle, self._planted):
            if each:
                each.extend(tokens, output, rows)

    def lookup(self, root: int, max_rows: int) -> None:
        """Never proposes anything."""

    def draft(self, root: int, spec: TreeSpec, growth: GrowthPolicy | None = None) -> Tree:
        tree = self.eagle.draft(root, spec, growth)
        waiting = len(self.eagle._waiting)
        assert self.eagle._cache.length + waiting == self._target.length == len(self.tokens)
        assert waiting == 0 or len(tree) == 1
        self.drafted.append(Drafted(len(self.tokens), root, spec, tree))
        return self._planted.draft(root, spec) if self._planted else tree

    def output(self, start: int, stop: int) -> TargetOutput:
        """The recorded output of a target pass over these positions, written back into the buffer of features."""
        count = stop - start
        features = self.eagle._fuse_engine.prepare({"hidden": "fused"}, n=count, m=count).inputs["features"]
        features[0] = np.stack(self.features[start:stop])
        return TargetOutput({"features": features}, Tree.chain([0] * count), start, 1)
