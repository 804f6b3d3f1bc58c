"""Recorded answers as lanes in simulated time: one lane is the plain replay, every answer is whole, bounds are bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from export.tuning.load.arms import LanePolicies, SharedBudget
from export.tuning.load.arrivals import at_once, bursts, day, steady
from export.tuning.load.bounds import Bound, all_scores, clairvoyant
from export.tuning.load.compare import Setting, compare, described, fastest, fit_load
from export.tuning.load.simulation import Arm, Planned, SimulatedLane, simulate_load
from export.tuning.load.trees import replay_trees
from export.tuning.load.worlds import World, load_world, world_names
from export.tuning.replay.simulation import fixed_trees, replay
from export.tuning.replay.traces import Trace
from policy import PLAIN, Calibration, CorrectedLatency, FixedPolicy, LatencyModel, RowBudget, TreeSpec
from tests.support.toy_answers import LATENCY

LANES = LATENCY.for_lanes()
TREES = [PLAIN, TreeSpec(3, 2, 1), TreeSpec(7, 6, 1)]
BOUNDS = TreeSpec(7, 6, 1)
ACCEPTANCE = Calibration(1.0, 0.0, 0.0, 0.0, 0.0, (7, 6, 1))


def answers(count: int, seed: int = 0, length: int = 50, prompt: int = 20) -> list[dict[int, Trace]]:
    """Chains whose scores say how likely each token is accepted, more in some answers than in others."""
    random, made = np.random.default_rng(seed), []
    for index in range(count):
        steps = -random.exponential([0.1, 0.5, 2.0][index % 3], (length, 6))
        scores = np.cumsum(steps, 1).astype(np.float32)
        right = np.cumprod(random.random((length, 6)) < np.exp(steps), 1).astype(bool)
        path = np.where(right, np.arange(6), -1).astype(np.int16)
        made.append({1: Trace(prompt, 1, scores, np.arange(1, 7, dtype=np.int8), path, np.zeros((length, 1), np.float16))})
    return made


def fixed(tree: TreeSpec) -> Arm:
    return LanePolicies(lambda: FixedPolicy(tree))


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_one_lane_is_the_plain_replay(tree: TreeSpec) -> None:
    given = answers(6)
    found = simulate_load(fixed(tree), given, at_once(6), 1, LANES, charge=False)
    single = [replay(FixedPolicy(tree), [each], LatencyModel(**{**vars(LATENCY), "lanes": None})) for each in given]
    prompts = 6 * LANES.verify(20, 1, 20)
    assert found.tokens == sum(each.tokens for each in single)
    assert len(found.rounds) == sum(each.cycles for each in single)
    # The last tree is cut to what is left of the answer there, as in service, and not in a replay.
    assert found.busy_ms - prompts == pytest.approx(sum(each.milliseconds for each in single), rel=0.05)


@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_every_answer_is_whole_whoever_decides(lanes: int) -> None:
    given = answers(12)
    arms: list[Arm] = [fixed(tree) for tree in TREES]
    arms += [SharedBudget(RowBudget(CorrectedLatency(LANES), 8 * lanes), BOUNDS), Bound(clairvoyant(1), LANES, 1, 6, 7)]
    for arm in arms:
        for times in (at_once(12), steady(12, 5.0, 0), bursts(12, 5.0, 4, 0)):
            found = simulate_load(arm, given, times, lanes, LANES)
            assert found.tokens == len(found.gaps) == 12 * 50
            assert max(each.lanes for each in found.rounds) <= lanes
            assert [len(found.shares), sum(share.rounds + share.accepted for share in found.shares)] == [12, 12 * 50]
            assert sum(each.rows - each.lanes for each in found.rounds) == sum(share.drafted for share in found.shares)
            assert found.p99 >= np.median(found.gaps)


def test_more_lanes_share_passes() -> None:
    rates = [simulate_load(fixed(PLAIN), answers(24), at_once(24), lanes, LANES, charge=False).rate for lanes in (1, 2, 4)]
    assert rates[1] > 1.5 * rates[0]
    assert rates[2] > 1.2 * rates[1]


class Beside(LanePolicies):
    """Plain decoding that notes the rows of prompts in its passes."""

    def __init__(self) -> None:
        super().__init__(lambda: FixedPolicy(PLAIN))
        self.rows: list[int] = []

    def plan(self, lanes: Sequence[SimulatedLane], waiting: int, beside: int) -> list[Planned]:
        self.rows.append(beside)
        return super().plan(lanes, waiting, beside)


def test_prompts_are_read_in_the_passes_that_decode() -> None:
    """One pass for both loads the weights once, and a chunk beside running answers is bounded as in a forest."""
    given, arm, apart = answers(12, prompt=300), Beside(), Beside()
    one = simulate_load(arm, given, at_once(12), 4, LANES, charge=False)
    two = simulate_load(apart, given, at_once(12), 4, LANES, charge=False, takes_chunks=False)
    assert one.tokens == two.tokens == 12 * 50
    assert one.busy_ms < two.busy_ms
    assert not any(apart.rows)
    assert 300 <= sum(arm.rows) <= 11 * 300  # nobody decodes beside the first prompt
    assert max(arm.rows) <= 128


def test_what_a_chunk_costs_is_what_was_measured() -> None:
    known = replace(LANES, chunks=(16, 128), chunk_ms=(20.0, 132.0), beside_ms=(10.0, 122.0))
    assert known.read(64, 0) == pytest.approx(68)
    assert known.verify_beside(8, 4, 0, 64) == pytest.approx(LANES.verify(8, 4, 0) + 58)
    assert known.verify_beside(8, 4, 0, 0) == LANES.verify(8, 4, 0)
    assert LANES.verify_beside(8, 4, 0, 64) == LANES.verify(72, 4, 0)


def test_waiting_for_arrivals_is_not_busy_time() -> None:
    given = answers(6)
    apart = simulate_load(fixed(PLAIN), given, [1e6 * at for at in range(6)], 4, LANES, charge=False)
    assert apart.busy_ms == pytest.approx(simulate_load(fixed(PLAIN), given, at_once(6), 1, LANES, charge=False).busy_ms)


def test_decisions_are_charged() -> None:
    given = answers(6)
    free, charged = (
        simulate_load(SharedBudget(RowBudget(CorrectedLatency(LANES), 32), BOUNDS), given, at_once(6), 4, LANES, charge)
        for charge in (False, True)
    )
    assert free.decisions_ms == 0
    assert charged.decisions_ms > 0
    assert charged.busy_ms > free.busy_ms


@pytest.mark.parametrize("place", [0.0, 0.5])
def test_the_cost_model_is_as_good_as_the_best_tree_and_below_the_bounds(place: float) -> None:
    """``place``: what a place in attention costs that no row fills."""
    train, test = answers(24, 1), answers(48, 2)
    setting = Setting(replace(LANES, place_ms=(place,) * len(LANES.spans)), fixed_trees((1,), range(1, 7), 7), TreeSpec(7, 6, 1), BOUNDS)
    fitted = fit_load(train, setting, (1, 4))
    found = compare(test, setting, fitted, (1, 4))
    assert list(found) == ["1", "4", "day"]
    for load in ("1", "4"):
        rates = {name: result.rate for name, result in found[load].items()}
        assert rates["cost-model"] > 0.98 * max(rates["table"], rates["fixed"], rates["none"])
        assert rates["clairvoyant"] > rates["all scores known"] > 0.99 * rates["cost-model"]
    assert fastest(found) in ("table", "cost-model")
    assert len(described(found, fitted, setting.default)) == 9


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("right", [0.02, 0.2, 0.35])
def test_at_no_load_is_the_row_budget_slower_than_plain_decoding(lanes: int, right: float) -> None:
    """Where the draft is hopeless, and where it hardly pays: what is lost is what trials cost."""
    given = [
        {1: replace(each[1], path=_accepted(each[1], right, seed))} for seed, each in enumerate(answers(4 * max(4, lanes), length=120))
    ]
    arms = SharedBudget(RowBudget(CorrectedLatency(LANES), 8 * lanes), BOUNDS), fixed(PLAIN)
    budget, plain = (simulate_load(arm, given, at_once(len(given)), lanes, LANES, charge=False).rate for arm in arms)
    assert budget > 0.99 * plain


def _accepted(trace: Trace, right: float, seed: int) -> np.ndarray:
    """A path that takes each token of the chain with this probability, whatever its score says."""
    taken = np.cumprod(np.random.default_rng(seed).random((len(trace), 6)) < right, 1).astype(bool)
    return np.where(taken, np.arange(6), -1).astype(np.int16)


def test_the_table_has_smaller_trees_for_more_lanes() -> None:
    trees = replay_trees(answers(12), fixed_trees((1,), range(1, 7), 7))
    table = trees.table(16, LANES)
    assert table[15].nodes <= table[0].nodes
    for lanes in (1, 4, 16):
        assert trees.rate(table[lanes - 1], lanes, LANES) == max(trees.rate(tree, lanes, LANES) for tree in trees.tokens)


def test_all_scores_known_adds_up_probabilities() -> None:
    given = answers(1)
    arm = simulate_load(Bound(all_scores(1, ACCEPTANCE), LANES, 1, 6, 7), given, at_once(1), 1, LANES)
    assert sum(share.drafted for share in arm.shares) > 0


@pytest.mark.parametrize("times", [steady(4000, 10, 1), bursts(4000, 10, 8, 1), day(4000, 10, 1)], ids=["steady", "bursts", "day"])
def test_arrivals_have_the_mean_rate(times: list[float]) -> None:
    assert times == sorted(times)
    assert len(times) == 4000
    assert 1000 * 4000 / times[-1] == pytest.approx(10, rel=0.15)


def test_a_day_has_a_night() -> None:
    counts, _ = np.histogram(day(4000, 10, 1), 8)
    assert counts[3:5].min() > 5 * counts[0]


def test_every_number_of_a_world_has_a_source() -> None:
    assert {"h100-8b", "h100-8b-fp8", "h200-8b", "h200-8b-fp8", "h100-70b", "h100-70b-fp8", "h200-70b", "h200-70b-fp8"} == set(
        world_names()
    )
    for name in world_names():
        world = load_world(name)
        assert world.name == name
        assert all(len(number.source) > 10 for number in vars(world).values() if not isinstance(number, str))
        passes = [world.latency.verify(rows, 1, 0) for rows in (1, 60, 480, 960)]
        assert passes == sorted(passes)


def round_ms(world: World, rows: int, depth: int) -> float:
    latency = world.latency
    return latency.verify(rows, 1, 0) + latency.draft(1, 8, depth) + latency.host(1)


def test_worlds_give_the_published_rounds_again() -> None:
    small, large = load_world("h100-8b"), load_world("h100-70b")
    assert 1000 / small.latency.verify(1, 1, 0) == pytest.approx(158.3, rel=0.01)
    assert 1000 * 5.39 / round_ms(small, 64, 8) == pytest.approx(378.6, rel=0.01)
    assert 1000 * 4.68 / round_ms(small, 64, 5) == pytest.approx(361.7, rel=0.01)
    assert 1000 * 5.88 / round_ms(large, 64, 8) == pytest.approx(234.5, rel=0.01)
    assert small.latency.verify(600, 8, 0) > 1.3 * small.latency.verify(60, 1, 0)
    cheaper = replace(small, plain_ms=replace(small.plain_ms, value=1.0))
    assert cheaper.latency.verify(1, 1, 0) < small.latency.verify(1, 1, 0)
