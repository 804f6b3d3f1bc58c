"""Trees, acceptance, and the n-gram drafter."""

from __future__ import annotations

import numpy as np
import pytest

from policy import PLAIN, TreeSpec
from runtime.decoding.sampling import TargetOutput
from runtime.decoding.tree import Tree, accept
from runtime.drafters.ngram import NgramDrafter

NOTHING = TargetOutput({}, Tree.chain([0]), 0, 1)


def test_from_parents_gives_ancestors_and_depth() -> None:
    tree = Tree.from_parents([5, 6, 7, 8, 9], [-1, 0, 0, 1, 3])
    assert tree.depth.tolist() == [0, 1, 1, 2, 3]
    assert [np.flatnonzero(row).tolist() for row in tree.mask] == [[0], [0, 1], [0, 2], [0, 1, 3], [0, 1, 3, 4]]
    assert tree.child(0, 7) == 2
    assert tree.child(3, 9) == 4
    assert tree.child(0, 8) is None


def test_chain_is_the_tree_of_single_children() -> None:
    chain, tree = Tree.chain([3, 1, 4, 1]), Tree.from_parents([3, 1, 4, 1], [-1, 0, 1, 2])
    for name in ("tokens", "parent", "depth", "mask"):
        np.testing.assert_array_equal(getattr(chain, name), getattr(tree, name))


@pytest.mark.parametrize(
    ("tokens", "parent"),
    [([], []), ([1], [0]), ([1, 2], [-1]), ([1, 2], [-1, 1]), ([1, 2], [-1, -1]), ([1, 2, 2], [-1, 0, 0]), ([1, 2, 3], [-1, 2, 0])],
)
def test_invalid_trees_raise(tokens: list[int], parent: list[int]) -> None:
    with pytest.raises(ValueError, match=r"tree|parent|siblings"):
        Tree.from_parents(tokens, parent)


def test_accept_follows_the_target_and_ends_with_the_bonus() -> None:
    tree = Tree.from_parents([5, 6, 7, 8, 9], [-1, 0, 0, 1, 3])
    target = {0: 6, 1: 8, 3: 2}
    accepted = accept(tree, target.__getitem__)
    assert accepted.path == (0, 1, 3)
    assert accepted.tokens == (6, 8, 2)
    assert accept(tree, lambda row: 0).tokens == (0,)


def test_accept_equals_the_reference_rule_on_random_trees() -> None:
    """EAGLE's formulation: the deepest node whose path equals the target's choice at each parent."""
    random = np.random.default_rng(0)
    for _ in range(1000):
        count = int(random.integers(1, 40))
        parent = [-1, *(int(random.integers(0, node)) for node in range(1, count))]
        tokens = [0]
        for node in range(1, count):
            siblings = {tokens[i] for i in range(1, node) if parent[i] == parent[node]}
            tokens.append(int(random.choice([t for t in range(60) if t not in siblings])))
        tree = Tree.from_parents(tokens, parent)
        choice = random.integers(0, 4, count)
        for node in range(1, count):  # let the target agree often, so that paths are deep
            if random.random() < 0.6:
                choice[parent[node]] = tokens[node]
        agrees = [node == 0 or tokens[node] == choice[parent[node]] for node in range(count)]
        good = [node for node in range(count) if all(agrees[i] for i in np.flatnonzero(tree.mask[node]))]
        deepest = max(good, key=lambda node: tree.depth[node])
        accepted = accept(tree, lambda row: int(choice[row]))  # noqa: B023 - called in this iteration
        assert accepted.path == tuple(np.flatnonzero(tree.mask[deepest]))
        assert accepted.tokens[-1] == choice[deepest]


def ngram(tokens: list[int]) -> NgramDrafter:
    drafter = NgramDrafter()
    drafter.extend(tokens, NOTHING, range(len(tokens)))
    return drafter


def test_ngram_proposes_what_followed_the_same_ngram() -> None:
    tree = ngram([1, 2, 3, 4, 5, 1, 2]).draft(3, TreeSpec(4, 3, 1))
    assert tree.tokens.tolist() == [3, 4, 5, 1]
    assert tree.parent.tolist() == [-1, 0, 1, 2]


def test_ngram_merges_continuations_and_prefers_long_and_recent_matches() -> None:
    seen = [7, 1, 2, 3, 4, 9, 9, 1, 2, 3, 4, 5, 9, 9, 8, 2, 3, 6, 9, 9, 7, 1, 2]
    tree = ngram(seen).draft(3, TreeSpec(7, 3, 3))
    children = [int(tree.tokens[node]) for node in range(1, len(tree)) if tree.parent[node] == 0]
    assert children == [4, 6]  # "7 1 2 3 4" matches longest; both 4s share a node
    assert sorted(tree.tokens[tree.parent == 1].tolist()) == [5, 9]


def test_ngram_respects_nodes_depth_and_width() -> None:
    random = np.random.default_rng(1)
    seen = random.integers(0, 4, 400).tolist()
    for spec in (PLAIN, TreeSpec(4, 3, 1), TreeSpec(5, 1, 4), TreeSpec(16, 4, 4), TreeSpec(64, 8, 8)):
        for root in range(4):
            tree = ngram(seen).draft(root, spec)
            assert len(tree) <= spec.nodes
            assert tree.depth.max() <= spec.depth
            assert np.bincount(tree.parent[1:] if len(tree) > 1 else [0]).max() <= max(spec.width, 1)


def test_ngram_without_a_match_gives_the_root_and_begin_clears_the_index() -> None:
    drafter = ngram([1, 2, 3, 1, 2])
    assert len(drafter.draft(3, TreeSpec(4, 3, 1))) == 3
    assert len(drafter.draft(9, TreeSpec(4, 3, 1))) == 1
    drafter.begin()
    assert len(drafter.draft(3, TreeSpec(4, 3, 1))) == 1
