"""The learned policies: the inputs they give to their networks, and the trees they choose."""

from __future__ import annotations

import numpy as np
import pytest

from export.tuning.replay.simulation import num_candidates
from policy import PLAIN, FixedPolicy, GrowthPolicy, Outcome, PartialTree, TreeSpec
from policy.ltd import PAD, Ltd, clip_nodes, depth_state, size_state
from policy.resps import Resps, cpu_actions
from tests.support.toy_answers import ACTIONS, TREE, constant, observation, partial_tree_of

# Re-SpS


def test_action_table() -> None:
    small = cpu_actions(16)
    assert small[0] == (1, 0, 0)
    assert 14 <= len(small) == len(set(small)) <= 18
    assert all(TreeSpec(*action) for action in small)
    assert {width for _, _, width in small[1:]} == {2, 3}
    assert {depth for _, depth, _ in small[1:]} == {1, 2, 3, 4, 5, 6}
    assert max(nodes for nodes, _, _ in cpu_actions(8)) == 8


def test_resps_gives_its_network_one_row_of_features() -> None:
    rows: list[np.ndarray] = []

    def net(x: np.ndarray) -> np.ndarray:
        rows.append(x)
        return np.array([[0.0, 2.0, 1.0]])

    assert Resps(net, ACTIONS).choose(observation()) == TreeSpec(3, 2, 1)
    assert rows[0].dtype == np.float32
    assert rows[0].tolist() == [[1, -1, 1, -1]]
    assert Resps(constant(1.0, 0.0, 0.0), ACTIONS).choose(observation()) == PLAIN


def test_resps_repeats_an_action_that_is_nearly_the_best() -> None:
    policy = Resps(lambda x: x, ((1, 0, 0), (3, 2, 1), TREE), margin=0.5)
    policy.begin()
    assert policy.choose(observation((0, 1, 0))) == TreeSpec(3, 2, 1)
    assert policy.choose(observation((0, 1, 1.4))) == TreeSpec(3, 2, 1)
    assert policy.choose(observation((0, 1, 1.6))) == TreeSpec(*TREE)
    policy.begin()
    assert policy.choose(observation((0, 1, 1.1))) == TreeSpec(*TREE)


def test_resps_samples_at_a_temperature_above_zero() -> None:
    def draws(seed: int) -> list[TreeSpec]:
        policy = Resps(constant(0.0, 0.5, 0.0), ACTIONS, temperature=1.5, seed=seed)
        return [policy.choose(observation()) for _ in range(50)]

    assert len(set(draws(0))) == 3
    assert draws(0) == draws(0) != draws(1)


@pytest.mark.parametrize("bad", [(np.nan, 0.0, 0.0), (np.inf, 0.0, 0.0), (0.0, 0.0)])
def test_invalid_logits_name_the_policy(bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="resps"):
        Resps(constant(*bad), ACTIONS).choose(observation())
    with pytest.raises(ValueError, match="ltd depth"):
        Ltd(constant(np.nan, 0.0), None, TREE).should_expand(partial_tree_of(TreeSpec(*TREE), 1))
    with pytest.raises(ValueError, match="ltd size"):
        Ltd(None, constant(*bad), TREE, sizes=(1, 4, 7)).num_nodes(partial_tree_of(TreeSpec(*TREE), 6))


def test_invalid_settings_raise() -> None:
    with pytest.raises(ValueError, match="at least one action"):
        Resps(constant(), ())
    with pytest.raises(ValueError, match="at most"):
        Resps(constant(1.0), ((99, 1, 2),))
    with pytest.raises(ValueError, match="features, average, not 'smell'"):
        Resps(constant(1.0), ((1, 0, 0),), state="smell")
    with pytest.raises(ValueError, match="every 1 level"):
        Ltd(None, None, TREE, every=0)
    with pytest.raises(ValueError, match="sizes"):
        Ltd(None, constant(1.0), TREE)


# LTD


def test_ltd_without_networks_is_the_largest_tree() -> None:
    policy = Ltd(None, None, (6, 3, 2))
    assert isinstance(policy, GrowthPolicy)
    spec = policy.choose(observation())
    assert spec == TreeSpec(6, 3, 2)
    assert all(policy.should_expand(partial_tree_of(spec, level)) for level in (1, 2))
    assert policy.num_nodes(partial_tree_of(spec, 3)) == 6
    assert policy.num_nodes(partial_tree_of(spec, 1)) == 3


def test_ltd_runs_its_depth_network_every_few_levels() -> None:
    spec, stop = TreeSpec(16, 6, 3), constant(1.0, 0.0)
    assert [Ltd(stop, None, (16, 6, 3), every=3).should_expand(partial_tree_of(spec, level)) for level in range(1, 6)] == [
        True,
        True,
        False,
        True,
        True,
    ]
    assert not Ltd(constant(0.0, 0.0), None, (16, 6, 3)).should_expand(partial_tree_of(spec, 1))  # a tie stops


def test_num_nodes_is_one_of_the_sizes() -> None:
    spec = TreeSpec(16, 6, 3)
    policy = Ltd(None, constant(0.0, 0.0, 1.0), (16, 6, 3), sizes=(2, 8, 16))
    assert policy.num_nodes(partial_tree_of(spec, 6)) == 16
    assert policy.num_nodes(partial_tree_of(spec, 2)) == 8  # 13 candidates
    assert policy.num_nodes(partial_tree_of(spec, 1)) == 2
    assert clip_nodes(partial_tree_of(spec, 1), 8, (8, 16)) == 1
    assert clip_nodes(partial_tree_of(spec, 1), 8, ()) == 4


def test_states_are_padded() -> None:
    tree = TreeSpec(16, 6, 3)
    partial_tree = partial_tree_of(TreeSpec(4, 2, 2), 1)
    state = depth_state(partial_tree, tree)
    assert state.dtype == np.float32
    assert state[:2].tolist() == sorted(partial_tree.last_level_scores.tolist(), reverse=True)
    np.testing.assert_allclose(state[2:], [PAD, 8 / 16, 1 / 6], rtol=1e-6)
    partial_tree = partial_tree_of(tree, 3)
    assert depth_state(partial_tree, tree)[:3].tolist() == sorted(partial_tree.last_level_scores.tolist(), reverse=True)[:3]
    full = size_state(partial_tree, tree)
    assert full.shape == (num_candidates(3, 6) + 2,)
    assert full[: num_candidates(3, 3)].tolist() == partial_tree.scores.tolist()
    assert set(full[num_candidates(3, 3) : -2].tolist()) == {PAD}
    low = PartialTree(tree, 1, np.array([-1, -np.inf, -30], np.float32), 1)
    assert depth_state(low, tree)[:3].tolist() == size_state(low, tree)[:3].tolist() == [-1, PAD, PAD]


def test_levels_of_another_width_keep_their_slots() -> None:
    tree = TreeSpec(16, 3, 3)
    narrow, wide = partial_tree_of(TreeSpec(4, 3, 2), 3), partial_tree_of(TreeSpec(16, 4, 4), 4)
    state = size_state(narrow, tree)
    assert state[:3].tolist() == [*narrow.scores[:2].tolist(), PAD]
    assert state[3:12].tolist() == [*narrow.scores[2:6].tolist(), *[PAD] * 5]
    assert state[12:21].tolist() == [*narrow.scores[6:10].tolist(), *[PAD] * 5]
    state = size_state(wide, tree)
    assert state[:3].tolist() == wide.scores[:3].tolist()
    assert state[12:21].tolist() == wide.scores[20:29].tolist()


def test_ltd_forwards_to_its_slow_policy() -> None:
    calls: list[object] = []

    class Slow(FixedPolicy):
        def begin(self) -> None:
            calls.append("begin")

        def observe(self, outcome: Outcome) -> None:
            calls.append(outcome)

    policy = Ltd(None, None, (16, 6, 3), slow=Slow(TreeSpec(4, 2, 2)))
    policy.begin()
    assert policy.choose(observation()) == TreeSpec(4, 2, 2)
    outcome = Outcome(PLAIN, 1, 1, 0.1)
    policy.observe(outcome)
    assert calls == ["begin", outcome]
    assert policy.num_nodes(partial_tree_of(TreeSpec(4, 2, 2), 2)) == 4
