"""TreeSpec: its bounds, its text form and clipping; and the fixed policy."""

from __future__ import annotations

import numpy as np
import pytest

from policy import PLAIN, FixedPolicy, Observation, Outcome, TreeSpec


@pytest.mark.parametrize("numbers", [(1, 0, 0), (2, 1, 1), (8, 7, 1), (11, 1, 10), (60, 8, 10), (711, 8, 10)])
def test_possible_trees(numbers: tuple[int, int, int]) -> None:
    spec = TreeSpec(*numbers)
    assert TreeSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "numbers", [(0, 0, 0), (2, 0, 0), (2, 1, 0), (12, 1, 10), (712, 8, 10), (1, -1, 0), (1, 0, -1), (True, 0, 0), (1.0, 0, 0)]
)
def test_impossible_trees(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="tree"):
        TreeSpec(*numbers)


@pytest.mark.parametrize("text", ["", "8", "8,4", "8,4,2,1", "a,b,c", "-8,4,2", "8,4,2.5", "9999999,1,1"])
def test_unreadable_trees(text: str) -> None:
    with pytest.raises(ValueError, match="tree"):
        TreeSpec.parse(text)


def test_within_clips_nodes_and_depth() -> None:
    spec = TreeSpec(16, 5, 3)
    assert spec.within(64, 9) == spec
    assert spec.within(16, 5) == spec
    assert spec.within(64, 0) == PLAIN
    assert spec.within(1, 5) == PLAIN
    assert spec.within(64, 1) == TreeSpec(4, 1, 3)
    assert spec.within(10, 5) == TreeSpec(10, 5, 3)
    for nodes in range(1, 20):
        for depth in range(8):
            cut = spec.within(nodes, depth)
            assert cut.nodes <= nodes
            assert cut.depth <= depth


def test_fixed_policy_always_chooses_its_tree() -> None:
    policy = FixedPolicy(TreeSpec(4, 3, 1))
    observation = Observation(10, 20, np.zeros(6, np.float32))
    before = policy.choose(observation)
    policy.observe(Outcome(before, 4, 1, 0.1))
    assert policy.choose(observation) == before == TreeSpec(4, 3, 1)
