"""The training environments: their tokens are those of a replay, and their rewards charge the latency model's milliseconds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from export.tuning.learning.environment import LtdDepthEnv, LtdSizeEnv, RespsEnv
from export.tuning.replay.simulation import ReplayResult, num_candidates, replay
from export.tuning.replay.traces import Trace
from policy import FixedPolicy, TreeSpec
from policy.ltd import Ltd
from policy.resps import Action
from tests.support.toy_answers import LATENCY, depth_net, size_net


def random_trace(width: int, depth: int, length: int, seed: int, features: int = 8) -> Trace:
    """A random trace of the form that the draft graph gives: each level has the ``width`` children of the ``width`` best candidates, scores
    fall from level to level, and the path follows candidates. For one seed, path lengths and features are the same at every width."""
    shared, random = np.random.default_rng(seed), np.random.default_rng((seed, width))
    path_lengths, target_features = shared.integers(0, depth + 1, length), shared.standard_normal((length, features)).astype(np.float16)
    scores, path = np.zeros((length, num_candidates(width, depth)), np.float32), np.full((length, depth), -1, np.int16)
    for position in range(length):
        beam, parent = np.zeros(1, np.float32), 0
        for level in range(depth):
            start = num_candidates(width, level) if level else 0
            children = (beam[:, None] - random.exponential(1, (len(beam), width))).astype(np.float32)
            scores[position, start : start + children.size] = children.ravel()
            best = np.argsort(-children.ravel(), kind="stable")[:width]
            if level < path_lengths[position] and parent is not None:
                child = next((int(index) for index in best if index // width == parent), None)
                path[position, level] = -1 if child is None else start + child
                parent = None if child is None else int(np.flatnonzero(best == child)[0])  # type: ignore[assignment]
            beam = children.ravel()[best]
    levels = np.concatenate([np.full(width if not level else width**2, level + 1, np.int8) for level in range(depth)])
    return Trace(20, width, scores, levels, path, target_features)


def random_answers(seeds: range = range(3)) -> list[Mapping[int, Trace]]:
    return [{width: random_trace(width, 6, 50, seed) for width in (2, 3)} for seed in seeds]


def test_random_traces_are_consistent() -> None:
    for width in (1, 2, 3):
        trace = random_trace(width, 6, 40, seed=1)
        assert trace.scores.shape == (40, num_candidates(width, 6)) == (40, len(trace.levels))
        assert (trace.path >= 0).any()
        for level in range(6):
            on_path = trace.path[:, level] >= 0
            assert (trace.levels[trace.path[on_path, level]] == level + 1).all()
            assert level == 0 or (on_path <= (trace.path[:, level - 1] >= 0)).all()


def test_window_is_ten_rounds_of_replay() -> None:
    answers = random_answers(range(1))
    actions: tuple[Action, ...] = ((1, 0, 0), (6, 3, 2), (12, 6, 3))
    env = RespsEnv(answers, LATENCY, 0.1, actions, hold=10, policy_ms=0.5)
    for index, action in enumerate(actions):
        observation, _ = env.reset(seed=0)
        assert observation.dtype == np.float32
        assert observation.tolist() == answers[0][2].features[0].astype(np.float32).tolist()
        total, windows, done, tokens = 0.0, 0, False, 0
        while not done:
            observation, reward, done, cut, info = env.step(index)
            total, windows, tokens = total + reward, windows + 1, tokens + info["window"].tokens
            assert not cut
            assert info["window"].cycles == 10 or done
            assert done or observation.tolist() == answers[0][2].features[tokens].astype(np.float32).tolist()
        expected = replay(FixedPolicy(TreeSpec(*action)), answers, LATENCY)
        assert windows == -(-expected.cycles // 10)
        assert total == pytest.approx(expected.tokens - 0.1 * (expected.milliseconds + 0.5 * windows))


def test_ltd_can_run_the_rounds_of_a_window() -> None:
    answers = random_answers(range(1))
    actions: tuple[Action, ...] = ((12, 6, 3),)
    env = RespsEnv(
        answers, LATENCY, 0.1, actions, hold=1000, make_policy=lambda spec: Ltd(depth_net, None, (12, 6, 3), slow=FixedPolicy(spec))
    )
    env.reset(seed=0)
    _, reward, done, _, _ = env.step(0)
    expected = replay(Ltd(depth_net, None, (12, 6, 3)), answers, LATENCY)
    assert done
    assert len(expected.trees) > 1
    assert reward == pytest.approx(expected.tokens - 0.1 * expected.milliseconds)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("rounds", [1, 7])
def test_ltd_rounds_equal_those_of_replay(every: int, rounds: int) -> None:
    answers, sizes = random_answers(range(1)), (1, 3, 6, 12)
    tree: Action = (12, 6, 3)
    policy = Ltd(depth_net, size_net, tree, every, sizes)
    expected = replay(policy, answers, LATENCY)
    assert len({depth for _, depth, _ in expected.trees}) > 2
    assert len({nodes for nodes, _, _ in expected.trees}) > 2
    depth = LtdDepthEnv(answers, LATENCY, 0.1, tree, policy.num_nodes, every, rounds, policy_ms=0.5)
    size = LtdSizeEnv(answers, LATENCY, 0.1, tree, sizes, policy.should_expand, rounds, policy_ms=0.5)
    for env, net, calls_per_round in ((depth, depth_net, None), (size, size_net, 1)):
        observation, _ = env.reset(seed=0)
        total, calls, result, position = 0.0, 0, ReplayResult(), 0
        while position < 50:
            observation, reward, done, _, info = env.step(int(np.argmax(net(observation[None]))))
            total, calls = total + reward, calls + 1
            if info:
                result.cycles, position = result.cycles + 1, position + info["tokens"]
                result.trees[info["tree"]] += 1
            assert info or reward == 0
            if done and position < 50:
                observation, _ = env.reset()
        assert result.trees == expected.trees
        assert calls_per_round is None or calls == result.cycles
        assert total == pytest.approx(expected.tokens - 0.1 * (expected.milliseconds + 0.5 * calls))


def test_impossible_environments_are_refused() -> None:
    answers = random_answers(range(1))
    with pytest.raises(ValueError, match="no traces of width 4"):
        RespsEnv(answers, LATENCY, 0.1, ((6, 3, 4),))
    with pytest.raises(ValueError, match="no traces of width 4"):
        LtdSizeEnv(answers, LATENCY, 0.1, (6, 3, 4), (6,), lambda partial_tree: True)
    with pytest.raises(ValueError, match="nothing to decide"):
        LtdDepthEnv(answers, LATENCY, 0.1, (6, 3, 3), lambda partial_tree: 6, every=3)
    with pytest.raises(ValueError, match="needs answers"):
        RespsEnv([], LATENCY, 0.1, ((1, 0, 0),))


@pytest.mark.filterwarnings("ignore:.*observation space")  # features have no bounds
def test_gymnasium_accepts_them() -> None:
    from gymnasium.utils.env_checker import check_env

    answers = random_answers()
    check_env(RespsEnv(answers, LATENCY, 0.1, ((1, 0, 0), (6, 3, 2))), skip_render_check=True)
    check_env(LtdDepthEnv(answers, LATENCY, 0.1, (6, 3, 3), lambda partial_tree: 6), skip_render_check=True)
    check_env(LtdSizeEnv(answers, LATENCY, 0.1, (6, 3, 3), (1, 6), lambda partial_tree: True), skip_render_check=True)
