"""Whether training finds a best action that is known, and keeps what it found.

The best of the toy is all of the chain where the draft is right, and none of it where it is wrong.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export.tuning.learning.environment import RespsWindow
from export.tuning.learning.nets import Mlp
from export.tuning.replay.simulation import replay
from policy import PLAIN, ActionPersistence, FixedPolicy, TreeSpec
from policy.ltd import Ltd
from policy.resps import Resps
from tests.support.toy_answers import ACTIONS, LATENCY, TREE, constant, observation, random_net, toy_answers


def toy_lesson() -> object:
    from export.tuning.learning.ppo import Lesson

    return Lesson(toy_answers(), toy_answers(2), LATENCY, rate=0.15)


def best_of_toy() -> float:
    easy, hard = toy_answers(2)
    done = [replay(FixedPolicy(TreeSpec(*TREE)), [easy], LATENCY), replay(FixedPolicy(PLAIN), [hard], LATENCY)]
    return sum(each.tokens for each in done) / sum(each.milliseconds for each in done)


def at_random() -> float:
    return replay(ActionPersistence(Resps(constant(0.0, 0.0, 0.0), ACTIONS, temperature=1.0), 10), toy_answers(40), LATENCY).rate


@pytest.mark.parametrize("entropy", [0.01, 0.1])
def test_resps_learns_when_the_draft_is_right(entropy: float) -> None:
    from export.tuning.learning.learn import RESPS, learn_resps
    from export.tuning.learning.ppo import TrainingLimits

    shares: list[float] = []
    settings = replace(RESPS, learning_rate=2e-3, entropy=entropy)
    learned = learn_resps(toy_lesson(), ACTIONS, TrainingLimits(1500, 20, seed=1, progress=shares.append), settings)  # type: ignore[arg-type]
    assert learned.rate == pytest.approx(best_of_toy(), rel=1e-6)
    assert learned.rate > 1.1 * at_random()
    assert learned.rate == max(rate for _, rate in learned.curve)
    policy = Resps(learned.net, ACTIONS)
    assert policy.choose(observation((1, -1, 1, -1))) == TreeSpec(*TREE)
    policy.begin()
    assert policy.choose(observation((-1, 1, 1, -1))) == PLAIN
    assert shares[0] < 0.05
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_ltd_learns_when_to_stop_and_what_to_verify() -> None:
    from export.tuning.learning.learn import LTD_DEPTH, LTD_SIZE, learn_ltd
    from export.tuning.learning.ppo import TrainingLimits

    small = {"rollout": 128, "batch": 32, "envs": 4, "learning_rate": 2e-3, "hidden": (32,), "critic": (32,)}
    depth, size = learn_ltd(
        toy_lesson(),  # type: ignore[arg-type]
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


def test_ltd_turns_have_names() -> None:
    from export.tuning.learning.learn import learn_ltd
    from export.tuning.learning.ppo import TrainingLimits

    with pytest.raises(ValueError, match="'width'"):
        learn_ltd(toy_lesson(), TREE, (1,), TrainingLimits(10), turns=("width",))  # type: ignore[arg-type]


def test_weights_leave_and_enter_the_trainer_unchanged() -> None:
    import torch

    from export.tuning.learning.learn import RESPS
    from export.tuning.learning.ppo import TrainingLimits, _load, _ppo, layers_of

    def environment() -> RespsWindow:
        return RespsWindow(toy_answers(), LATENCY, 0.1, ACTIONS)

    model = _ppo(environment, RESPS, TrainingLimits(100, seed=3))
    net = random_net((4, 128, 128, 3), "tanh", normalise=True)
    _load(model, net)
    again = Mlp(layers_of(model), "tanh", normalise=True)
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    with torch.no_grad():
        logits = model.policy.get_distribution(torch.from_numpy(x)).distribution.logits.numpy()
    logits -= logits.mean(-1, keepdims=True)  # torch gives log-probabilities
    np.testing.assert_allclose(again(x) - again(x).mean(-1, keepdims=True), logits, atol=1e-5)
    np.testing.assert_array_equal(again(x), net(x))


def test_time_ends_a_training() -> None:
    from export.tuning.learning.learn import RESPS, learn_resps
    from export.tuning.learning.ppo import TrainingLimits

    learned = learn_resps(toy_lesson(), ACTIONS, TrainingLimits(10**7, 0.2), RESPS)  # type: ignore[arg-type]
    assert learned.curve[-1][0] < 10**5
