"""A lane's tree while it grows."""

from __future__ import annotations

import numpy as np

from policy import TreeSpec
from runtime.drafters.growth import GrowingTree


def test_a_level_stays_as_it_is_when_the_next_pass_overwrites_the_engine_s_outputs() -> None:
    tree = GrowingTree(1, TreeSpec(5, 2, 2), length=9)
    log_probs, candidates = np.array([[-0.1, -0.5]], np.float32), np.array([[7, 8]])
    tree.add(log_probs, candidates, np.zeros((1, 4), np.float32))
    for output, other in ((log_probs, -9.0), (candidates, 3)):
        output[:] = other
    tree.add(np.full((2, 2), -0.2, np.float32), np.array([[5, 6], [4, 2]]), np.zeros((2, 4), np.float32))
    assert sorted(tree.tree(7).tokens.tolist()) == [1, 2, 4, 5, 6, 7, 8]
