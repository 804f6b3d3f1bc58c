"""What learned policies are trained in: the tokens of replay, the costs of the latency model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from export.tuning.learning.environment import LtdDepth, LtdSize, RespsWindow
from export.tuning.replay.simulation import Replay, candidates, replay
from export.tuning.replay.traces import Trace
from policy import FixedPolicy, TreeSpec
from policy.ltd import Ltd
from policy.resps import Action
from tests.support.toy_answers import LATENCY, by_places, likely_enough


def random_trace(width: int, depth: int, length: int, seed: int, features: int = 8) -> Trace:
    """A pool as `expand` leaves it: levels of the ``width`` best candidates' ``width`` children, scores falling from level to level, and a
    path that is one of the pool's. A seed's paths and features are the same at every width."""
    shared, random = np.random.default_rng(seed), np.random.default_rng((seed, width))
    lengths, looks = shared.integers(0, depth + 1, length), shared.standard_normal((length, features)).astype(np.float16)
    pool = candidates(width, depth)
    scores, right = np.zeros((length, pool), np.float32), np.full((length, depth), -1, np.int16)
    for place in range(length):
        beam, above = np.zeros(1, np.float32), 0
        for level in range(depth):
            start = candidates(width, level) if level else 0
            children = (beam[:, None] - random.exponential(1, (len(beam), width))).astype(np.float32)
            scores[place, start : start + children.size] = children.ravel()
            best = np.argsort(-children.ravel(), kind="stable")[:width]
            if level < lengths[place] and above is not None:
                slot = next((int(each) for each in best if each // width == above), None)
                right[place, level] = -1 if slot is None else start + slot
                above = None if slot is None else int(np.flatnonzero(best == slot)[0])  # type: ignore[assignment]
            beam = children.ravel()[best]
    levels = np.concatenate([np.full(width if not level else width**2, level + 1, np.int8) for level in range(depth)])
    return Trace(20, width, scores, levels, right, looks)


def some_answers(seeds: range = range(3)) -> list[Mapping[int, Trace]]:
    return [{width: random_trace(width, 6, 50, seed) for width in (2, 3)} for seed in seeds]


def test_random_traces_are_consistent() -> None:
    for width in (1, 2, 3):
        trace = random_trace(width, 6, 40, seed=1)
        assert trace.scores.shape == (40, candidates(width, 6)) == (40, len(trace.levels))
        assert (trace.right >= 0).any()
        for level in range(6):
            found = trace.right[:, level] >= 0
            assert (trace.levels[trace.right[found, level]] == level + 1).all()
            assert level == 0 or (found <= (trace.right[:, level - 1] >= 0)).all()


def test_a_window_is_so_many_rounds_of_replay() -> None:
    answers = some_answers(range(1))
    actions: tuple[Action, ...] = ((1, 0, 0), (6, 3, 2), (12, 6, 3))
    env = RespsWindow(answers, LATENCY, 0.1, actions, hold=10, policy_ms=0.5)
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
        whole = replay(FixedPolicy(TreeSpec(*action)), answers, LATENCY)
        assert windows == -(-whole.cycles // 10)
        assert total == pytest.approx(whole.tokens - 0.1 * (whole.milliseconds + 0.5 * windows))


def test_a_window_can_be_played_by_ltd() -> None:
    answers = some_answers(range(1))
    actions: tuple[Action, ...] = ((12, 6, 3),)
    env = RespsWindow(
        answers, LATENCY, 0.1, actions, hold=1000, under=lambda spec: Ltd(likely_enough, None, (12, 6, 3), slow=FixedPolicy(spec))
    )
    env.reset(seed=0)
    _, reward, done, _, _ = env.step(0)
    whole = replay(Ltd(likely_enough, None, (12, 6, 3)), answers, LATENCY)
    assert done
    assert len(whole.trees) > 1
    assert reward == pytest.approx(whole.tokens - 0.1 * whole.milliseconds)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("rounds", [1, 7])
def test_ltds_rounds_are_those_of_replay(every: int, rounds: int) -> None:
    answers, sizes = some_answers(range(1)), (1, 3, 6, 12)
    tree: Action = (12, 6, 3)
    policy = Ltd(likely_enough, by_places, tree, every, sizes)
    whole = replay(policy, answers, LATENCY)
    assert len({depth for _, depth, _ in whole.trees}) > 2
    assert len({nodes for nodes, _, _ in whole.trees}) > 2
    depth = LtdDepth(answers, LATENCY, 0.1, tree, policy.num_nodes, every, rounds, policy_ms=0.5)
    size = LtdSize(answers, LATENCY, 0.1, tree, sizes, policy.should_expand, rounds, policy_ms=0.5)
    for env, net, calls_a_round in ((depth, likely_enough, None), (size, by_places, 1)):
        observation, _ = env.reset(seed=0)
        total, calls, played, place = 0.0, 0, Replay(), 0
        while place < 50:
            observation, reward, done, _, info = env.step(int(np.argmax(net(observation[None]))))
            total, calls = total + reward, calls + 1
            if info:
                played.cycles, place = played.cycles + 1, place + info["tokens"]
                played.trees[info["tree"]] += 1
            assert info or reward == 0
            if done and place < 50:
                observation, _ = env.reset()
        assert played.trees == whole.trees
        assert calls_a_round is None or calls == played.cycles
        assert total == pytest.approx(whole.tokens - 0.1 * (whole.milliseconds + 0.5 * calls))


def test_environments_say_what_they_lack() -> None:
    answers = some_answers(range(1))
    with pytest.raises(ValueError, match="no traces of width 4"):
        RespsWindow(answers, LATENCY, 0.1, ((6, 3, 4),))
    with pytest.raises(ValueError, match="no traces of width 4"):
        LtdSize(answers, LATENCY, 0.1, (6, 3, 4), (6,), lambda partial_tree: True)
    with pytest.raises(ValueError, match="nothing to decide"):
        LtdDepth(answers, LATENCY, 0.1, (6, 3, 3), lambda partial_tree: 6, every=3)
    with pytest.raises(ValueError, match="needs answers"):
        RespsWindow([], LATENCY, 0.1, ((1, 0, 0),))


@pytest.mark.filterwarnings("ignore:.*observation space")  # features have no bounds
def test_gymnasium_accepts_them() -> None:
    from gymnasium.utils.env_checker import check_env

    answers = some_answers()
    check_env(RespsWindow(answers, LATENCY, 0.1, ((1, 0, 0), (6, 3, 2))), skip_render_check=True)
    check_env(LtdDepth(answers, LATENCY, 0.1, (6, 3, 3), lambda partial_tree: 6), skip_render_check=True)
    check_env(LtdSize(answers, LATENCY, 0.1, (6, 3, 3), (1, 6), lambda partial_tree: True), skip_render_check=True)
