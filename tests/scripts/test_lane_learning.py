"""scripts/lab/policies/lane_learning.py: labels say what each choice would have brought, and networks learn them."""

from __future__ import annotations

import numpy as np

from export.tuning.load.arms import LanePolicies, SharedBudget
from export.tuning.load.arrivals import at_once
from export.tuning.load.simulation import simulate_load
from export.tuning.replay.simulation import any_trace
from policy import PLAIN, CorrectedLatency, FixedPolicy, RowBudget, TreeSpec
from policy.forest import LaneHistory
from scripts.lab.policies.lane_learning import LearnedBudget, LearningBudget, Projection, collected, fitted, resps_arm, resps_examples
from tests.support.toy_answers import LATENCY, TREE, toy_answers

LANES, BOUNDS = LATENCY.for_lanes(), TreeSpec(*TREE)
ACTIONS = [PLAIN, TreeSpec(3, 2, 1), BOUNDS]
EASY, HARD = toy_answers(2)
PROJECT = Projection.of([EASY, HARD])


def test_labels_say_which_tree_is_best_and_re_sps_learns_it() -> None:
    states, worth = resps_examples([EASY, HARD] * 2, LANES, ACTIONS, {1: 0.15, 4: 0.2}, 50.0, PROJECT)
    easy = states[:, 0] * PROJECT(any_trace(EASY).features[0])[0] > 0
    assert set(np.argmax(worth[easy], 1)) == {2}
    assert set(np.argmax(worth[~easy], 1)) == {0}
    given = [EASY, HARD] * 4
    net = fitted(states, worth, 16, 0, 60)
    rates = {
        name: simulate_load(make(), given, at_once(8), 2, LANES, charge=False).rate
        for name, make in {
            "learned": lambda: resps_arm(net, ACTIONS, PROJECT, 10),
            "none": lambda: LanePolicies(lambda: FixedPolicy(PLAIN)),
            "tree": lambda: LanePolicies(lambda: FixedPolicy(BOUNDS)),
        }.items()
    }
    assert rates["learned"] > 1.05 * max(rates["none"], rates["tree"])


def test_examples_hold_what_was_accepted() -> None:
    found = collected([EASY, HARD] * 3, LANES, BOUNDS, (1, 2), 8, PROJECT)
    accepted = np.array([label for _, label in found.who])
    assert set(accepted) >= {0.0, 6.0}
    gains = np.array([label for _, label in found.deep])
    assert 0.5 < gains.max() < 1  # an accepted token, less its row
    assert gains.min() == 0  # what is unlikely is not verified
    assert len(found.deep) == 5 * len(found.who)  # every level that could follow another
    states = np.stack([state for state, _ in found.who])
    net = fitted(states, accepted.astype(np.float32), 16, 0, 40)
    assert np.corrcoef(net(states), accepted)[0, 1] > 0.7


def test_learned_lanes_finish_every_answer_and_know_who_deserves_drafting() -> None:
    given = [EASY, HARD] * 4

    def right(states: np.ndarray) -> np.ndarray:
        """Sees in the features which answers are easy."""
        return np.where(states[:, 11] * PROJECT(any_trace(EASY).features[0])[0] > 0, 5.0, 0.0)

    arms = {
        "closed": SharedBudget(RowBudget(CorrectedLatency(LANES), 32), BOUNDS),
        "learned": LearningBudget(LearnedBudget(CorrectedLatency(LANES), 32), BOUNDS, PROJECT, right),
    }
    found = {name: simulate_load(arm, given, at_once(8), 4, LANES, charge=False) for name, arm in arms.items()}
    assert {each.tokens for each in found.values()} == {8 * 60}
    assert found["learned"].rate > found["closed"].rate


def test_a_network_for_the_depth_decides() -> None:
    never, always = (simulate_depth(value) for value in (-1.0, 9.0))
    assert never == 1
    assert always > 3


def simulate_depth(value: float) -> float:
    budget = LearnedBudget(CorrectedLatency(LANES), 32)
    budget.deep = lambda inputs: np.full(len(inputs), value)
    arm = SharedBudget(budget, BOUNDS, everyone=True)
    simulate_load(arm, [EASY] * 4, at_once(4), 2, LANES, charge=False)
    return round(budget._depth)


def test_without_a_prediction_the_record_counts() -> None:
    from scripts.lab.policies.lane_learning import Recent

    budget = RowBudget(CorrectedLatency(LANES), 32)
    recent, plain = Recent(), LaneHistory()
    for each in (recent, plain):
        each.add(3, 2.0, 4)
    assert recent.tokens(budget.pool) == plain.tokens(budget.pool)
    recent.predicted = 1.5
    assert recent.tokens(budget.pool) == 1.5
