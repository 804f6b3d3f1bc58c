"""Training finds the best action where it is known, and keeps the best weights.

In the toy answers the best action is the whole chain where the draft is right, and plain decoding where it is wrong.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export.tuning.learning.environment import RespsEnv
from export.tuning.learning.nets import Mlp, Scaling
from export.tuning.replay.simulation import replay
from policy import PLAIN, ActionPersistence, FixedPolicy, TreeSpec
from policy.ltd import Ltd
from policy.resps import Resps
from tests.support.toy_answers import ACTIONS, LATENCY, TREE, constant, observation, random_net, toy_answers


def toy_data() -> object:
    from export.tuning.learning.ppo import TrainingData

    return TrainingData(toy_answers(), toy_answers(2), LATENCY, rate=0.15)


def best_rate() -> float:
    easy, hard = toy_answers(2)
    results = [replay(FixedPolicy(TreeSpec(*TREE)), [easy], LATENCY), replay(FixedPolicy(PLAIN), [hard], LATENCY)]
    return sum(result.tokens for result in results) / sum(result.milliseconds for result in results)


def random_rate() -> float:
    """The rate of random actions."""
    return replay(ActionPersistence(Resps(constant(0.0, 0.0, 0.0), ACTIONS, temperature=1.0), 10), toy_answers(40), LATENCY).rate


@pytest.mark.parametrize("entropy", [0.01, 0.1])
def test_resps_learns_when_the_draft_is_right(entropy: float) -> None:
    from export.tuning.learning.learn import RESPS, train_resps
    from export.tuning.learning.ppo import TrainingLimits

    shares: list[float] = []
    settings = replace(RESPS, learning_rate=2e-3, entropy=entropy)
    learned = train_resps(toy_data(), ACTIONS, TrainingLimits(1500, 20, seed=1, progress=shares.append), settings)  # type: ignore[arg-type]
    assert learned.rate == pytest.approx(best_rate(), rel=1e-6)
    assert learned.rate > 1.1 * random_rate()
    assert learned.rate == max(rate for _, rate in learned.curve)
    policy = Resps(learned.net, ACTIONS)
    assert policy.choose(observation((1, -1, 1, -1))) == TreeSpec(*TREE)
    policy.begin()
    assert policy.choose(observation((-1, 1, 1, -1))) == PLAIN
    assert shares[0] < 0.05
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_ltd_learns_when_to_stop_and_what_to_verify() -> None:
    from export.tuning.learning.learn import LTD_DEPTH, LTD_SIZE, train_ltd
    from export.tuning.learning.ppo import TrainingLimits

    small = {"rollout": 128, "batch": 32, "envs": 4, "learning_rate": 2e-3, "hidden": (32,), "critic": (32,)}
    depth, size = train_ltd(
        toy_data(),  # type: ignore[arg-type]
        TREE,
        (1, 3, 7),
        TrainingLimits(1200, 10, seed=1),
        depth_settings=replace(LTD_DEPTH, **small),  # type: ignore[arg-type]
        size_settings=replace(LTD_SIZE, **small),  # type: ignore[arg-type]
    )
    assert depth is not None
    assert size is not None
    policy = Ltd(depth.net, size.net, TREE, sizes=(1, 3, 7))
    trees = replay(policy, toy_answers(2), LATENCY).trees
    assert trees.most_common(1)[0][0] == (1, 1, 1)  # one level is always drafted
    assert trees[7, 6, 1] >= 8  # 60 tokens at 7 a round
    assert set(trees) == {(1, 1, 1), (7, 6, 1)}


def test_unknown_phase_is_an_error() -> None:
    from export.tuning.learning.learn import train_ltd
    from export.tuning.learning.ppo import TrainingLimits

    with pytest.raises(ValueError, match="'width'"):
        train_ltd(toy_data(), TREE, (1,), TrainingLimits(10), phases=("width",))  # type: ignore[arg-type]


def test_weights_survive_loading_into_ppo_and_reading_back() -> None:
    import torch

    from export.tuning.learning.learn import RESPS
    from export.tuning.learning.ppo import TrainedActor, TrainingLimits, _critic, _load, _ppo, _weights, actor_layers

    def environment() -> RespsEnv:
        return RespsEnv(toy_answers(), LATENCY, 0.1, ACTIONS)

    scaling = Scaling(np.array([1, 0, -2, 0], np.float32), np.array([1, 10, 0.1, 2], np.float32))
    model = _ppo(environment, RESPS, TrainingLimits(100, seed=3), scaling)
    net, critic = random_net((4, 128, 128, 3), "tanh"), random_net((4, 128, 128, 1), "tanh", seed=1)
    _load(model, TrainedActor(net.layers, "tanh", critic.layers, 0.0, ()))
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(_weights(_critic(model))[0], critic.layers[0], strict=True))
    read_back = Mlp(actor_layers(model, scaling), "tanh")
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    with torch.no_grad():
        logits = model.policy.get_distribution(torch.from_numpy(x)).distribution.logits.numpy()
    logits -= logits.mean(-1, keepdims=True)  # torch gives log-probabilities
    np.testing.assert_allclose(read_back(x) - read_back(x).mean(-1, keepdims=True), logits, atol=1e-5)
    np.testing.assert_allclose(read_back(x), net((x - scaling.mean) / scaling.deviation), atol=1e-4)


def test_weights_are_checked_all_along_a_run_that_time_ends() -> None:
    from export.tuning.learning.learn import RESPS, train_resps
    from export.tuning.learning.ppo import EVALUATIONS, TrainingLimits

    curve = train_resps(toy_data(), ACTIONS, TrainingLimits(10**7, 2.0), RESPS).curve  # type: ignore[arg-type]
    assert 4 <= len(curve) <= EVALUATIONS + 2
    assert curve[-1][0] < 10**5
    assert curve[len(curve) // 2][0] < 0.8 * curve[-1][0]
