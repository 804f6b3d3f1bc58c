"""The graphs that grow trees, called level by level as by the runtime, equal EAGLE's algorithm in plain Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from export.graphs.builder import FLOAT
from export.graphs.tree_growth import LEVEL_PENALTY, MAX_DEPTH, build_expand, build_tree
from policy import TreeSpec
from runtime.decoding.tree import Tree
from tests.support.eagle_reference import Level, ReferencePool, expect_same, expect_well_formed, grow, paths

HIDDEN, VOCAB, ROOT = 3, 500, 499
POOL = ("scores", "tokens", "parents")
KINDS = ("smooth", "halves", "sure", "equal", "few", "far")
SHAPES = tuple(
    TreeSpec(nodes, depth, width)
    for depth, width in (
        *((1, 1), (1, 2), (1, 16), (2, 1), (2, 2), (2, 5), (3, 2), (3, 3), (4, 2), (4, 4), (5, 3), (6, 4), (6, 8), (7, 3), (7, 10)),
        *((9, 2), (12, 3), (MAX_DEPTH, 1), (MAX_DEPTH, 2), (MAX_DEPTH, 4)),
    )
    for nodes in sorted({1, 2, 6, 16, 61, TreeSpec(1, depth, width).capacity})
    if nodes <= min(128, TreeSpec(1, depth, width).capacity)
)


class RandomDraft:
    """Random outputs of a draft model. ``kind``: distribution of its log-probabilities; most kinds have many exact ties."""

    def __init__(self, kind: str, width: int, seed: int) -> None:
        self._kind, self._width, self._random = kind, width, np.random.default_rng(seed)

    def rows(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """log_probs and distinct candidates [count, width], the most probable first, as the draft's TopK returns them."""
        random, shape = self._random, (count, self._width)
        spreads: dict[str, Callable[[], np.ndarray]] = {
            "smooth": lambda: np.log(random.random(shape) + 1e-6),
            "halves": lambda: -random.integers(0, 8, shape) / 2,
            "sure": lambda: np.where(np.arange(self._width) == 0, 0.0, -random.integers(15, 18, shape)),  # log p = 0 exactly
            "equal": lambda: np.full(shape, -np.log(self._width)),
            "few": lambda: np.log(random.choice([1.0, 0.5, 0.25], shape)),
            "far": lambda: -random.choice([0.0, 0.0, 300.0], shape),  # the sum swallows the penalty of a level: the order must decide
        }
        log_probs = spreads[self._kind]()
        candidates = np.stack([random.choice(VOCAB, self._width, replace=False) for _ in range(count)])
        return -np.sort(-log_probs.astype(np.float32), axis=1), candidates


class Graphs:
    """`expand` and `tree` in ONNX Runtime with the sizes that EagleDrafter binds. Records the inputs of the draft."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self._expand, self._tree = (
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
            for model in (build_expand(HIDDEN, FLOAT), build_tree())
        )
        self._names = [each.name for each in self._expand.get_outputs()]

    def grow(self, draft: RandomDraft, depth: int, width: int, committed: int) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
        """The final pool, and the inputs and outputs of `expand` at each level. ``committed``: rows of the first pass; the last one is
        used."""
        state: dict[str, np.ndarray] = {
            "scores": np.zeros(1, np.float32),
            "ids": np.zeros(1, np.int64),
            "mask": np.zeros((1, 0), bool),
            "pool_scores": np.zeros(1, np.float32),
            "pool_tokens": np.array([ROOT]),
            "pool_parents": np.array([-1]),
        }
        levels = []
        for level in range(depth):
            rows = np.arange(width) if level else np.array([committed - 1])
            log_probs, candidates = draft.rows(len(rows))
            # Every number of the features says which pass and row it is from.
            features = 1000 * level + np.arange(committed if level == 0 else width, dtype=np.float32)
            drafted = {"log_probs": log_probs, "candidates": candidates, "next_hidden": np.tile(features[None, :, None], HIDDEN)}
            outputs = self._expand.run(None, {**drafted, **state, "rows": rows, "beam": np.arange(width)})
            written = dict(zip(self._names, outputs, strict=True))
            levels.append({**drafted, **written})
            state = {name: written[f"next_{name}"] for name in state}
        return {name: state[f"pool_{name}"] for name in POOL}, levels

    def tree(self, pool: dict[str, np.ndarray], nodes: int) -> Tree:
        feeds = {f"pool_{name}": pool[name] for name in POOL}
        return Tree(*self._tree.run(["tokens", "parent", "depth", "tree_mask"], {**feeds, "nodes": np.arange(nodes)}))


@pytest.fixture(scope="module")
def graphs() -> Graphs:
    return Graphs()


def replayed(levels: list[dict[str, np.ndarray]], depth: int, width: int) -> ReferencePool:
    """The reference algorithm on the same outputs of the draft."""
    answers: Iterator[dict[str, np.ndarray]] = iter(levels)

    def forward(_: Level) -> tuple[np.ndarray, np.ndarray]:
        answer = next(answers)
        return answer["log_probs"], answer["candidates"]

    log_probs, candidates = forward(Level([], [], []))
    return grow((log_probs[0], candidates[0]), forward, depth, width)


@pytest.mark.parametrize("kind", KINDS)
def test_trees_and_every_level_equal_the_reference(graphs: Graphs, kind: str) -> None:
    """With the shapes and kinds, more than two thousand random cases."""
    for number, spec in enumerate(SHAPES):
        for seed in range(number, number + 4):
            committed = seed % 4 + 1
            pool, levels = graphs.grow(RandomDraft(kind, spec.width, seed), spec.depth, spec.width, committed)
            expected = replayed(levels, spec.depth, spec.width)
            assert pool["tokens"].tolist() == [ROOT, *expected.tokens]
            assert pool["scores"].tolist() == [0.0, *(float(score) for score in expected.scores)]
            for depth, (actual, level) in enumerate(zip(levels, expected.levels, strict=True)):
                assert actual["tokens"].tolist() == [level.tokens]
                assert actual["next_mask"].tolist() == level.mask
                rows = np.array(level.source) + (1000 * depth if depth else committed - 1)
                assert actual["hidden"].tolist() == [[[row] * HIDDEN for row in rows.tolist()]]
            tree = graphs.tree(pool, spec.nodes)
            expect_same(tree, expected.tree(ROOT, spec.nodes))
            expect_well_formed(tree, ROOT, spec)


def test_there_are_two_thousand_cases_and_they_do_tie(graphs: Graphs) -> None:
    assert 4 * len(KINDS) * len(SHAPES) >= 2000
    for kind in KINDS[1:]:
        pool, _ = graphs.grow(RandomDraft(kind, 4, 0), 4, 4, 1)
        assert len(np.unique(pool["scores"])) < len(pool["scores"]) - 4, kind


@pytest.mark.parametrize("kind", KINDS)
def test_smaller_trees_lie_inside_larger_ones(graphs: Graphs, kind: str) -> None:
    for seed, (depth, width) in enumerate([(1, 8), (3, 3), (6, 4), (MAX_DEPTH, 2)]):
        pool, _ = graphs.grow(RandomDraft(kind, width, seed), depth, width, 1)
        inner: set[tuple[int, ...]] = set()
        for nodes in range(1, TreeSpec(1, depth, width).capacity + 1):
            tree = graphs.tree(pool, nodes)
            expect_well_formed(tree, ROOT, TreeSpec(nodes, depth, width))
            assert inner < paths(tree)
            inner = paths(tree)


def test_sure_drafts_grow_deep_and_unsure_ones_wide(graphs: Graphs) -> None:
    """A child with probability one is selected together with its parent."""
    pool, _ = graphs.grow(RandomDraft("sure", 4, 0), MAX_DEPTH, 4, 1)
    assert graphs.tree(pool, MAX_DEPTH + 1).depth.tolist() == list(range(MAX_DEPTH + 1))
    pool, _ = graphs.grow(RandomDraft("equal", 4, 0), 4, 4, 1)
    assert graphs.tree(pool, 5).depth.tolist() == [0, 1, 1, 1, 1]


def test_a_level_costs_its_penalty_and_nothing_else(graphs: Graphs) -> None:
    pool, _ = graphs.grow(RandomDraft("sure", 2, 0), MAX_DEPTH, 2, 1)
    assert np.sort(-pool["scores"])[: MAX_DEPTH + 1] == pytest.approx(LEVEL_PENALTY * np.arange(MAX_DEPTH + 1), rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_a_draft_that_overflows_still_gives_a_tree(graphs: Graphs, share: float) -> None:
    """Features beyond fp16's range make NaN scores. The tree may be useless but must be well-formed, or answers would change."""
    for seed in range(20):

        class OverflowingDraft(RandomDraft):
            def rows(self, count: int) -> tuple[np.ndarray, np.ndarray]:
                log_probs, candidates = super().rows(count)
                log_probs[self._random.random(log_probs.shape) < share] = [np.nan, -np.inf][self._random.integers(2)]
                return log_probs, candidates

        pool, _ = graphs.grow(OverflowingDraft("smooth", 4, seed), 5, 4, 1)
        for nodes in (1, 2, 7, 30):
            expect_well_formed(graphs.tree(pool, nodes), ROOT, TreeSpec(nodes, 5, 4))


def test_graphs_use_nothing_whose_output_size_depends_on_data() -> None:
    """Operators like NonZero would need the host at every level and cannot be captured in a CUDA graph."""
    for model in (build_expand(HIDDEN, FLOAT), build_tree()):
        onnx.checker.check_model(model, full_check=True)
        kinds: set[Any] = {node.op_type for node in model.graph.node}
        assert not kinds & {"NonZero", "Unique", "Loop", "If", "Scan", "Compress"}
