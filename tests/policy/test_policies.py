"""Persistence, the closed form's decisions and the watchdog, each against what can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from policy import (
    PLAIN,
    ActionPersistence,
    Calibration,
    CostModel,
    FixedPolicy,
    GrowthPolicy,
    LatencyModel,
    Observation,
    Outcome,
    PartialTree,
    TreeSpec,
    Watchdog,
    trees_of,
    watch,
)
from policy.watchdog import EVERY, LEAST, WINDOW, WatchdogGrowth

HERE = Observation(100, 100, lambda: np.zeros(3))
TREE = TreeSpec(5, 3, 2)
SURFACE = LatencyModel((1, 8), (100,), ((10.0, 17.0),), (2,), (1, 4), ((2.0, 5.0),), 0.5)


@dataclass
class Counting:
    """Another tree every time it is asked."""

    asked: int = 0
    told: list[Outcome] = field(default_factory=list)
    begun: int = 0

    def begin(self) -> None:
        self.begun += 1

    def choose(self, observation: Observation) -> TreeSpec:
        self.asked += 1
        return TreeSpec(2 + self.asked % 3, 3, 2)

    def observe(self, outcome: Outcome) -> None:
        self.told.append(outcome)


def outcome(spec: TreeSpec, tokens: int, seconds: float = 0.01) -> Outcome:
    return Outcome(spec, spec.nodes, tokens, seconds)


def test_choice_is_held_and_every_round_is_told() -> None:
    inner = Counting()
    held = ActionPersistence(inner, 10)
    for _ in range(2):
        held.begin()
        chosen = []
        for _ in range(25):
            chosen.append(held.choose(HERE))
            held.observe(outcome(chosen[-1], 2))
        assert len(set(chosen[:10])) == len(set(chosen[10:20])) == 1
        assert chosen[9] != chosen[10]
    assert (inner.asked, len(inner.told), inner.begun) == (6, 50, 2)
    with pytest.raises(ValueError, match="1 round or more"):
        ActionPersistence(inner, 0)


def test_choice_is_made_anew_when_acceptance_leaves_the_band() -> None:
    inner = Counting()
    held = ActionPersistence(inner, 100, band=0.3)
    for tokens in [2] * 30 + [5] * 8:
        held.observe(outcome(held.choose(HERE), tokens))
    assert inner.asked == 1  # the first choice was made before anything was known
    inner, held = Counting(), ActionPersistence(Counting(), 20, band=0.3)
    held = ActionPersistence(inner, 20, band=0.3)
    for tokens in [2] * 21 + [5] * 8:
        held.observe(outcome(held.choose(HERE), tokens))
    assert inner.asked > 2


def model(**changes: float) -> CostModel:
    numbers = {"slope": 1.0, "level": 0.0, "bias": 0.0, "gain": 1.0, "rate": 0.1, **changes}
    return CostModel(Calibration(**numbers, tree=(7, 4, 2)), SURFACE)


def partial_tree(scores: list[float], level: int) -> PartialTree:
    return PartialTree(TreeSpec(7, 4, 2), level, np.array(scores, np.float32), 100)


def test_level_is_drafted_while_it_pays() -> None:
    """A level costs 1 ms, worth 0.1 tokens: the best candidate must be right with more than a tenth."""
    assert model().should_expand(partial_tree([-2.0, -5.0], 1))  # 0.12
    assert not model().should_expand(partial_tree([-2.3, -5.0], 1))  # 0.09
    assert not model(rate=0.2).should_expand(partial_tree([-2.0, -5.0], 1))
    assert not model(level=-1.0).should_expand(partial_tree([-2.0, -5.0], 1))
    assert model().should_expand(partial_tree([0.0, 0.0, -9.0, -2.0, -9.0, -9.0], 2))  # the last level's, not the first's
    assert not model().should_expand(partial_tree([0.0, 0.0, -9.0, -9.0, -9.0, -9.0], 2))


def test_nodes_are_verified_while_they_pay() -> None:
    """A row costs 1 ms, worth 0.1 tokens."""
    scores = [2.0, 1.0, -1.0, -3.0, -2.0, -9.0]  # 0.88 0.73 0.27 0.05 0.12 0.00
    assert model().num_nodes(partial_tree(scores, 2)) == 5  # the root and four
    assert model(rate=0.2).num_nodes(partial_tree(scores, 2)) == 4
    assert model(rate=2.0).num_nodes(partial_tree(scores, 2)) == 1
    chosen = CostModel(model().calibration, SURFACE, sizes=(1, 2, 4, 8))
    assert chosen.num_nodes(partial_tree(scores, 2)) == 4


def test_hopeless_text_is_decoded_plainly_most_of_the_time() -> None:
    """Trees that never bring anything and cost 6 % of a round, as they do on a CPU: an answer of 128 tokens loses less than 2 %, longer
    ones less and less."""
    latency = LatencyModel((1, 8), (100,), ((10.0, 17.0),), (2,), (1, 4), ((0.63, 1.0),), 0.5)
    unsure = partial_tree([-9.0, -9.0], 1)
    hopeless = watch(model(), PLAIN, latency)
    hopeless.begin()
    chosen = []

    def decode(tokens: int) -> None:
        chosen.append(hopeless.choose(HERE))
        nodes = 1
        if isinstance(hopeless, WatchdogGrowth) and chosen[-1] != PLAIN:
            nodes = hopeless.num_nodes(unsure)
        hopeless.observe(Outcome(chosen[-1], nodes, 1 if chosen[-1] == PLAIN else tokens, 0.01))

    for _ in range(500):
        decode(1)
    tried = [spec != PLAIN for spec in chosen]
    assert sum(tried[:128]) > 20
    assert 0.06 * sum(tried[:128]) / 128 < 0.02
    assert 0.06 * sum(tried[128:]) / len(tried[128:]) < 0.006
    for _ in range(200):  # and it comes back when they do bring something
        decode(3)
    assert sum(spec == PLAIN for spec in chosen[-50:]) <= WINDOW  # the fixed tree's turn


def run(watched: Watchdog, rounds: int, slow: float, fast: float) -> list[TreeSpec]:
    """The static tree's rounds take ``fast`` seconds, the policy's ``slow``."""
    chosen = []
    for _ in range(rounds):
        spec = watched.choose(HERE)
        chosen.append(spec)
        watched.observe(outcome(spec, 3, fast if spec == TREE else slow))
    return chosen


def test_policy_that_is_slower_than_the_static_tree_is_pinned_to_it() -> None:
    watched = watch(FixedPolicy(TreeSpec(8, 4, 2)), TREE, SURFACE)
    run(watched, WINDOW * EVERY * LEAST, slow=0.02, fast=0.01)
    assert watched.pinned == "0.50 times as fast as the tree 5,3,2"
    watched.begin()  # what was learned holds for the next request
    assert set(run(watched, 100, slow=0.02, fast=0.01)) == {TREE}


def test_policy_that_is_no_slower_goes_on_and_is_compared_now_and_then() -> None:
    watched = watch(FixedPolicy(TreeSpec(8, 4, 2)), TREE, SURFACE)
    chosen = run(watched, WINDOW * EVERY * 10, slow=0.01, fast=0.0101)
    assert not isinstance(watched, GrowthPolicy)  # nobody has to look at the tree
    assert watched.pinned is None
    assert chosen.count(TREE) == WINDOW * 10


@pytest.mark.parametrize(("worth", "pinned"), [(1.0, 0), (0.7, 20)])
def test_luck_of_the_text_pins_nobody_and_a_real_loss_does(worth: float, pinned: int) -> None:
    """Tokens of a round as they are on real text; a policy worth as much as the tree, and one that is 30 % slower, twenty times each."""
    given_up = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        watched = watch(FixedPolicy(TreeSpec(8, 4, 2)), TREE, SURFACE)
        easy = 0.5
        for _ in range(WINDOW * EVERY * 40):
            easy = min(0.9, max(0.1, easy + random.normal(0, 0.03)))  # passages are easy or hard
            spec = watched.choose(HERE)
            tokens = 1 + int(random.binomial(4, easy))
            watched.observe(outcome(spec, tokens, 0.03 if spec in (TREE, PLAIN) else 0.03 / worth))
        given_up += watched.pinned is not None
    assert given_up == pinned


def test_trees_to_be_ready_for() -> None:
    assert trees_of(FixedPolicy(TREE)) == (TREE,)
    assert trees_of(watch(model(), TREE, SURFACE)) == (TREE, TreeSpec(7, 4, 2))
    assert trees_of(Counting()) == ()


@pytest.mark.parametrize("verb", ["choose", "should_expand", "num_nodes"])
def test_network_without_numbers_is_given_up_at_once(verb: str) -> None:
    class Broken(CostModel):
        pass

    def fail(*_: object) -> None:
        raise ValueError("policy net: not a number")

    setattr(Broken, verb, fail)
    watched = watch(Broken(model().calibration, SURFACE), TREE, SURFACE)
    assert watched.choose(HERE) in (TREE, TreeSpec(7, 4, 2))
    tree = partial_tree([0.0, -1.0], 1)
    assert isinstance(watched, WatchdogGrowth)
    assert watched.should_expand(tree) in (True, False)
    assert 1 <= watched.num_nodes(tree) <= tree.spec.nodes
    assert watched.pinned == "policy net: not a number"
    assert watched.choose(HERE) == TREE
    assert watched.num_nodes(tree) == tree.spec.nodes
