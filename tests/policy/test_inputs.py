"""The named inputs of the policies' networks are what the policies give them."""

from __future__ import annotations

import numpy as np
import pytest

from policy import Observation, PartialTree, TreeSpec, inputs
from policy.ltd import depth_state, size_state
from policy.resps import STATES, seeing

TREE = TreeSpec(9, 3, 2)
HIDDEN = 8


def test_every_state_of_resps_has_named_inputs() -> None:
    assert inputs.RESPS.keys() == STATES.keys()
    for state, names in inputs.RESPS.items():
        assert inputs.resps_state(names) == state


@pytest.mark.parametrize("state", ["features", "average"])
def test_width_is_that_of_what_resps_sees(state: str) -> None:
    features = np.arange(3 * HIDDEN, dtype=np.float32)
    seen = seeing(state)(Observation(5, 5, lambda: features))
    assert seen.shape == (inputs.width(inputs.RESPS[state], len(features)),)


def test_width_is_that_of_what_ltd_sees_group_by_group() -> None:
    scores = -np.arange(1, 1 + TREE.width + TREE.width**2, dtype=np.float32)
    partial_tree = PartialTree(TREE, 2, scores, 256)
    depth, size = depth_state(partial_tree, TREE), size_state(partial_tree, TREE)
    assert depth.shape == (inputs.width(inputs.LTD_DEPTH, tree=TREE),)
    assert size.shape == (inputs.width(inputs.LTD_SIZE, tree=TREE),)
    for state, (first, *scalars) in ((depth, inputs.LTD_DEPTH), (size, inputs.LTD_SIZE)):
        assert scalars == ["length", "level"]
        np.testing.assert_allclose(state[inputs.width((first,), tree=TREE) :], [8 / 16, 2 / 3], rtol=1e-6)
    assert depth[:2].tolist() == [-3, -4]
    assert size[:6].tolist() == scores.tolist()


def test_unknown_names() -> None:
    with pytest.raises(KeyError):
        inputs.width(("load",))
    with pytest.raises(KeyError):
        inputs.resps_state(("target_features", "load"))
