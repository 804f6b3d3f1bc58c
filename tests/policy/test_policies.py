"""Action persistence, the cost model and the watchdog, each against values worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from policy import (
    PLAIN,
    ActionPersistence,
    Calibration,
    CorrectedLatency,
    CorrectedRounds,
    CostModel,
    FixedPolicy,
    GrowthPolicy,
    LatencyModel,
    Observation,
    Outcome,
    PartialTree,
    RoundCosts,
    TreeSpec,
    Watchdog,
    default_latency,
    trees_of,
    watch,
)
from policy.watchdog import COMPARISON_PERIOD, MIN_COMPARISONS, WINDOW, WatchdogGrowth

OBSERVATION = Observation(100, 100, lambda: np.zeros(3))
TREE = TreeSpec(5, 3, 2)
LATENCY = LatencyModel((1, 8), (100,), ((10.0, 17.0),), (2,), (1, 4), ((2.0, 5.0),), 0.5)


@dataclass
class CountingPolicy:
    """Chooses another tree every time, and counts its calls."""

    begins: int = 0
    choices: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    def begin(self) -> None:
        self.begins += 1

    def choose(self, observation: Observation) -> TreeSpec:
        self.choices += 1
        return TreeSpec(2 + self.choices % 3, 3, 2)

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def outcome(spec: TreeSpec, tokens: int, seconds: float = 0.01) -> Outcome:
    return Outcome(spec, spec.nodes, tokens, seconds)


def test_action_persists_and_the_policy_observes_every_round() -> None:
    inner = CountingPolicy()
    policy = ActionPersistence(inner, 10)
    for _ in range(2):
        policy.begin()
        chosen = []
        for _ in range(25):
            chosen.append(policy.choose(OBSERVATION))
            policy.observe(outcome(chosen[-1], 2))
        assert len(set(chosen[:10])) == len(set(chosen[10:20])) == 1
        assert chosen[9] != chosen[10]
    assert (inner.choices, len(inner.outcomes), inner.begins) == (6, 50, 2)
    with pytest.raises(ValueError, match="1 round or more"):
        ActionPersistence(inner, 0)


def test_policy_chooses_again_when_acceptance_leaves_the_band() -> None:
    inner = CountingPolicy()
    policy = ActionPersistence(inner, 100, band=0.3)
    for tokens in [2] * 30 + [5] * 8:
        policy.observe(outcome(policy.choose(OBSERVATION), tokens))
    assert inner.choices == 1  # at the first choice there was no mean to compare with
    inner = CountingPolicy()
    policy = ActionPersistence(inner, 20, band=0.3)
    for tokens in [2] * 21 + [5] * 8:
        policy.observe(outcome(policy.choose(OBSERVATION), tokens))
    assert inner.choices > 2


def model(**changes: float) -> CostModel:
    numbers = {"slope": 1.0, "level": 0.0, "bias": 0.0, "gain": 1.0, "rate": 0.1, **changes}
    return CostModel(Calibration(**numbers, tree=(7, 4, 2)), LATENCY)


def partial_tree(scores: list[float], level: int) -> PartialTree:
    return PartialTree(TreeSpec(7, 4, 2), level, np.array(scores, np.float32), 100)


def test_level_is_drafted_while_it_pays() -> None:
    """A level costs 1 ms, worth 0.1 tokens: the best candidate's probability must exceed 0.1."""
    assert model().should_expand(partial_tree([-2.0, -5.0], 1))  # 0.12
    assert not model().should_expand(partial_tree([-2.3, -5.0], 1))  # 0.09
    assert not model(rate=0.2).should_expand(partial_tree([-2.0, -5.0], 1))
    assert not model(level=-1.0).should_expand(partial_tree([-2.0, -5.0], 1))
    assert model().should_expand(partial_tree([0.0, 0.0, -9.0, -2.0, -9.0, -9.0], 2))  # the last level counts, not the first
    assert not model().should_expand(partial_tree([0.0, 0.0, -9.0, -9.0, -9.0, -9.0], 2))


def test_levels_of_one_pass_cost_nothing_and_nodes_do() -> None:
    """However unlikely a level is, it is taken; the nodes are weighed as ever."""
    latency = default_latency(False, one_pass=True)
    assert latency.draft(2, 15) == latency.draft(8, 1) > 0
    policy = CostModel(model().calibration, latency)
    assert policy.should_expand(partial_tree([-9.0, -9.0], 1))
    assert not CostModel(model().calibration, default_latency(False)).should_expand(partial_tree([-9.0, -9.0], 1))
    scores = [2.0, 1.0, -9.0, -9.0, -9.0, -9.0]
    assert CostModel(model(rate=2.0).calibration, latency).num_nodes(partial_tree(scores, 2)) == 3


def test_nodes_are_verified_while_they_pay() -> None:
    """A row costs 1 ms, worth 0.1 tokens."""
    scores = [2.0, 1.0, -1.0, -3.0, -2.0, -9.0]  # 0.88 0.73 0.27 0.05 0.12 0.00
    assert model().num_nodes(partial_tree(scores, 2)) == 5  # the root and four
    assert model(rate=0.2).num_nodes(partial_tree(scores, 2)) == 4
    assert model(rate=2.0).num_nodes(partial_tree(scores, 2)) == 1
    chosen = CostModel(model().calibration, LATENCY, sizes=(1, 2, 4, 8))
    assert chosen.num_nodes(partial_tree(scores, 2)) == 4


def nodes_after_service(costs: RoundCosts, machine: LatencyModel, slow: float) -> int:
    """Nodes that the cost model verifies of a tree after 400 rounds on a machine that is ``slow`` times slower than ``machine``."""
    inner, noise = CostModel(model().calibration, costs), np.random.default_rng(0)
    policy = watch(inner, PLAIN, costs)
    tree, seconds = partial_tree([2.0, 1.0, -1.0, -3.0, -2.0, -9.0], 2), slow / 1000
    tokens = np.cumsum([1, 0.88, 0.73, 0.27, 0.12, 0.05, 0.0])
    assert isinstance(policy, WatchdogGrowth)
    policy.begin()
    for _ in range(400):
        spec = policy.choose(OBSERVATION)
        nodes = 1 if spec == PLAIN else policy.num_nodes(tree)
        verify = seconds * machine.verify(nodes, 100)
        rest = seconds * (noise.uniform(0.9, 1.1) * machine.draft(2, min(2, spec.depth)) + machine.host_ms)
        policy.observe(Outcome(spec, nodes, float(tokens[nodes - 1]), rest + verify, verify, rest))
    return inner.num_nodes(tree)


@pytest.mark.parametrize(("row", "slow"), [(1.0, 1.0), (1.0, 3.0), (0.2, 1.0), (6.0, 1.0), (6.0, 0.2)])
def test_the_cost_model_decides_as_if_rows_had_been_measured_here(row: float, slow: float) -> None:
    """A row costs ``row`` times what the tuning says."""
    machine = LatencyModel((1, 8), (100,), ((10.0, 10 + 7 * row),), (2,), (1, 4), ((2.0, 5.0),), 0.5)
    corrected = nodes_after_service(CorrectedRounds(CorrectedLatency(LATENCY.alone())), machine, slow)
    assert corrected == nodes_after_service(machine, machine, slow)
    assert (corrected < nodes_after_service(LATENCY, machine, slow)) == (row > 1)


@pytest.mark.parametrize("static", [PLAIN, TREE])
def test_rows_that_were_dear_for_a_while_are_tried_again(static: TreeSpec) -> None:
    costs = CorrectedLatency(LATENCY.alone())
    policy = CostModel(model().calibration, CorrectedRounds(costs))
    watched, tree = watch(policy, static, CorrectedRounds(costs)), partial_tree([2.0, 1.0, -1.0, -3.0, -2.0, -9.0], 2)
    assert isinstance(watched, WatchdogGrowth)

    def serve(rounds: int, row: float) -> int:
        for _ in range(rounds):
            spec = watched.choose(OBSERVATION)
            nodes = 1 if spec == PLAIN else watched.num_nodes(tree)
            seconds = 0.010 + 0.001 * row * (nodes - 1)
            rest = 0.0035 if spec.depth else 0.0005
            watched.observe(Outcome(spec, nodes, min(nodes, 3), seconds + rest, seconds, rest))
        return policy.num_nodes(tree)

    before = serve(300, 1)
    assert serve(300, 20) < before
    assert serve(2000, 1) == before


def test_trees_that_fail_do_not_seem_cheaper_and_cheaper() -> None:
    """The rate follows the last rounds, down to that of plain decoding, whichever request they belong to."""
    policy = model(rate=0.2)
    policy.choose(OBSERVATION)
    policy.num_nodes(partial_tree([2.0, 1.0], 1))
    assert policy.rate == 0.2
    for _ in range(300):
        policy.observe(Outcome(TREE, 3, 1, 0.02))
    policy.begin()
    assert policy.rate == pytest.approx(1 / LATENCY.round(1, 0, 0, 100))


def test_hopeless_text_is_decoded_plainly_most_of_the_time() -> None:
    """Trees that are never accepted and cost 6 % of a round, as on a CPU: an answer of 128 tokens loses less than 2 % to them, and later
    tokens less than 0.6 %."""
    latency = LatencyModel((1, 8), (100,), ((10.0, 17.0),), (2,), (1, 4), ((0.63, 1.0),), 0.5)
    unsure = partial_tree([-9.0, -9.0], 1)
    watchdog = watch(model(), PLAIN, latency)
    watchdog.begin()
    chosen = []

    def decode(tokens: int) -> None:
        chosen.append(watchdog.choose(OBSERVATION))
        nodes = 1
        if isinstance(watchdog, WatchdogGrowth) and chosen[-1] != PLAIN:
            nodes = watchdog.num_nodes(unsure)
        watchdog.observe(Outcome(chosen[-1], nodes, 1 if chosen[-1] == PLAIN else tokens, 0.01))

    for _ in range(500):
        decode(1)
    tried = [spec != PLAIN for spec in chosen]
    assert sum(tried[:128]) > 20
    assert 0.06 * sum(tried[:128]) / 128 < 0.02
    assert 0.06 * sum(tried[128:]) / len(tried[128:]) < 0.006
    for _ in range(200):  # once trees are accepted, the policy returns
        decode(3)
    assert sum(spec == PLAIN for spec in chosen[-50:]) <= WINDOW  # at most one window of the fixed tree, which is PLAIN here


def run(watchdog: Watchdog, rounds: int, policy_seconds: float, fixed_seconds: float) -> list[TreeSpec]:
    """The trees that were chosen when rounds of the policy and of the fixed tree TREE take these times."""
    chosen = []
    for _ in range(rounds):
        spec = watchdog.choose(OBSERVATION)
        chosen.append(spec)
        watchdog.observe(outcome(spec, 3, fixed_seconds if spec == TREE else policy_seconds))
    return chosen


def test_a_policy_slower_than_the_fixed_tree_is_replaced_by_it() -> None:
    watchdog = watch(FixedPolicy(TreeSpec(8, 4, 2)), TREE, LATENCY)
    run(watchdog, WINDOW * COMPARISON_PERIOD * MIN_COMPARISONS, policy_seconds=0.02, fixed_seconds=0.01)
    assert watchdog.fallback_reason == "0.50 times as fast as the tree 5,3,2"
    watchdog.begin()  # the verdict holds for the next request
    assert set(run(watchdog, 100, policy_seconds=0.02, fixed_seconds=0.01)) == {TREE}


def test_a_policy_that_is_no_slower_stays_and_is_compared_regularly() -> None:
    watchdog = watch(FixedPolicy(TreeSpec(8, 4, 2)), TREE, LATENCY)
    chosen = run(watchdog, WINDOW * COMPARISON_PERIOD * 10, policy_seconds=0.01, fixed_seconds=0.0101)
    assert not isinstance(watchdog, GrowthPolicy)  # no need to read partial trees
    assert watchdog.fallback_reason is None
    assert chosen.count(TREE) == WINDOW * 10


@pytest.mark.parametrize(("speed", "expected"), [(1.0, 0), (0.7, 20)])
def test_chance_rejects_no_policy_and_a_real_loss_does(speed: float, expected: int) -> None:
    """Tokens per round vary as on real text. A policy as fast as the fixed tree, and one that is 30 % slower, twenty runs each."""
    given_up = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        watchdog = watch(FixedPolicy(TreeSpec(8, 4, 2)), TREE, LATENCY)
        acceptance = 0.5
        for _ in range(WINDOW * COMPARISON_PERIOD * 40):
            acceptance = min(0.9, max(0.1, acceptance + random.normal(0, 0.03)))  # passages are easy or hard
            spec = watchdog.choose(OBSERVATION)
            tokens = 1 + int(random.binomial(4, acceptance))
            watchdog.observe(outcome(spec, tokens, 0.03 if spec in (TREE, PLAIN) else 0.03 / speed))
        given_up += watchdog.fallback_reason is not None
    assert given_up == expected


def test_trees_to_prepare_for() -> None:
    assert trees_of(FixedPolicy(TREE)) == (TREE,)
    assert trees_of(watch(model(), TREE, LATENCY)) == (TREE, TreeSpec(7, 4, 2))
    assert trees_of(CountingPolicy()) == ()


@pytest.mark.parametrize("method", ["choose", "should_expand", "num_nodes"])
def test_a_policy_whose_network_gives_no_numbers_is_given_up_at_once(method: str) -> None:
    class FailingCostModel(CostModel):
        pass

    def fail(*_: object) -> None:
        raise ValueError("policy net: not a number")

    setattr(FailingCostModel, method, fail)
    watchdog = watch(FailingCostModel(model().calibration, LATENCY), TREE, LATENCY)
    assert watchdog.choose(OBSERVATION) in (TREE, TreeSpec(7, 4, 2))
    tree = partial_tree([0.0, -1.0], 1)
    assert isinstance(watchdog, WatchdogGrowth)
    assert watchdog.should_expand(tree) in (True, False)
    assert 1 <= watchdog.num_nodes(tree) <= tree.spec.nodes
    assert watchdog.fallback_reason == "policy net: not a number"
    assert watchdog.choose(OBSERVATION) == TREE
    assert watchdog.num_nodes(tree) == tree.spec.nodes
