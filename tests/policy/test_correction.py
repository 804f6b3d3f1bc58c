"""What rounds in service teach of their costs, on machines with noise, slow moments and drift."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from policy import PLAIN, CorrectedLatency, FixedPolicy, Guarded, LatencyModel, Observation, Outcome, TreeSpec
from runtime.lanes.policy import lane_policy
from tests.support.lanes_costs import MODEL

ALONE = LatencyModel((1, 8), (100,), ((10.0, 17.0),), (2,), (1, 4), ((2.0, 5.0),), 0.5)
TREE = TreeSpec(5, 3, 2)


class Machine:
    """A machine on which rows and drafts cost other multiples of the model's, with noise and slow moments."""

    def __init__(self, seed: int = 0, slow: float = 0.0) -> None:
        self.random, self.slow = np.random.default_rng(seed), slow
        self.all, self.row, self.draft = 1.0, 1.0, 1.0

    def _noisy(self, milliseconds: float) -> float:
        slow = 20.0 if self.random.random() < self.slow else 1.0
        return self.all * milliseconds * slow * float(np.exp(0.05 * self.random.standard_normal()))

    def run(self, latency: CorrectedLatency, rounds: int, lanes: int = 4) -> None:
        for at in range(rounds):
            growing = [lanes] * 3
            latency.observe_draft(
                growing, 3, self._noisy(self.draft * sum(MODEL.draft(lanes, 3, d + 1) - MODEL.draft(lanes, 3, d) for d in range(3)))
            )
            rows, plain = (lanes, 3 * lanes, 5 * lanes, 16)[at % 4], MODEL.verify(lanes, lanes, 100)
            latency.observe_pass(rows, lanes, 100, self._noisy(plain + self.row * (MODEL.verify(rows, lanes, 100) - plain)))


@pytest.mark.parametrize("slow", [0.0, 0.1])
def test_learns_what_rows_and_drafts_cost_here_whatever_the_unit(slow: float) -> None:
    machine, latency = Machine(slow=slow), CorrectedLatency(MODEL)
    machine.all, machine.row, machine.draft = 0.05, 2.5, 3.0
    machine.run(latency, 40)
    assert latency.row_factor == pytest.approx(2.5, rel=0.15)
    assert latency.draft_factor == pytest.approx(3.0, rel=0.15)


def test_a_single_slow_round_changes_nothing() -> None:
    machine, latency = Machine(), CorrectedLatency(MODEL)
    machine.run(latency, 40)
    before = latency.row_factor, latency.draft_factor
    latency.observe_draft([4, 4, 4], 3, 5000.0)
    latency.observe_pass(20, 4, 100, 20000.0)
    machine.run(latency, 4)
    assert (latency.row_factor, latency.draft_factor) == pytest.approx(before, rel=0.08)


def test_follows_a_drift_within_a_window() -> None:
    machine, latency = Machine(), CorrectedLatency(MODEL)
    machine.run(latency, 60)
    machine.all, machine.row = 1.8, 3.0
    machine.run(latency, 36)
    assert latency.row_factor == pytest.approx(3.0, rel=0.15)
    assert latency.draft_factor == pytest.approx(1.0, rel=0.15)


def test_while_passes_are_alike_the_price_of_a_row_returns_to_the_tuned_one() -> None:
    machine, latency = Machine(), CorrectedLatency(MODEL)
    machine.row = 2.0
    machine.run(latency, 40)
    before = latency.row_factor
    for _ in range(40):
        latency.observe_pass(4, 4, 100, 26.0)
    assert before > latency.row_factor > 1.3
    for _ in range(400):
        latency.observe_pass(4, 4, 100, 26.0)
    assert latency.row_factor == pytest.approx(1, abs=0.05)


def test_two_slow_passes_among_plain_ones_do_not_say_what_rows_cost() -> None:
    latency = CorrectedLatency(MODEL)
    for at in range(64):
        slow = at in (40, 41)
        latency.observe_pass(16 if slow else 4, 4, 100, 500.0 if slow else MODEL.verify(4, 4, 100))
    assert latency.row_factor == 1


@pytest.mark.parametrize("row", [0.2, 6.0])
def test_passes_of_one_tree_alone_change_neither_factor(row: float) -> None:
    """They do not tell what a plain pass takes, so nothing is known of drafting either."""
    latency = CorrectedLatency(MODEL)
    plain, whole = MODEL.verify(4, 4, 100), MODEL.verify(20, 4, 100)
    for _ in range(200):
        latency.observe_draft([4, 4, 4], 3, MODEL.draft(4, 3, 3))
        latency.observe_pass(20, 4, 100, plain + row * (whole - plain))
    assert (latency.row_factor, latency.draft_factor) == (1, 1)


def test_the_guard_of_every_lane_follows_what_rows_cost_here() -> None:
    costs, machine = CorrectedLatency(MODEL), Machine()
    policies = [lane_policy(Guarded(FixedPolicy(TreeSpec(6, 3, 2)), costs), costs) for _ in range(2)]
    machine.row = 8.0
    machine.run(costs, 40)
    for policy in policies:
        chosen = []
        for _ in range(100):
            chosen.append(policy.choose(Observation(100, 50, lambda: np.zeros(0), lanes=4)))
            policy.observe(Outcome(chosen[-1], chosen[-1].nodes, 1 if chosen[-1] == PLAIN else 3, 9.0))
        assert chosen.count(PLAIN) > 40


def test_what_the_draft_reads_after_a_pause_is_not_taken_for_drafting() -> None:
    costs = CorrectedLatency(ALONE.alone())
    for at in range(40):
        costs.observe(Outcome(PLAIN, 1, 1, 0.0105, 0.010, 0.0005), 0, 100)
        rest = 0.0045 + 0.050 * (at % 2)
        costs.observe(Outcome(TREE, 5, 2, 0.014 + rest, 0.014, rest, 60 if at % 2 else 3), 3, 100)
    assert costs.draft_factor == pytest.approx(1, rel=0.01)
    assert costs.row_factor == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("slow", [1.5, 3.0])
def test_a_machine_that_changes_its_speed_changes_no_price(slow: float) -> None:
    """It becomes faster as a pause begins, in which trees are tried four times in 68 rounds."""
    costs = CorrectedLatency(ALONE.alone())

    def serve(tree: bool, factor: float) -> None:
        seconds, rest = (0.014, 0.0045) if tree else (0.010, 0.0005)
        spec = TREE if tree else PLAIN
        costs.observe(Outcome(spec, spec.nodes, 2, 0.1, factor * seconds, factor * rest, 3 if tree else 0), spec.depth, 100)

    for at in range(96):
        serve(at % 8 > 0, slow)
    for at in range(200):
        serve(at % 68 > 63, 1.0)
        assert (costs.row_factor, costs.draft_factor) == pytest.approx((1, 1), rel=0.02)


def test_without_plain_rounds_both_prices_return_to_the_tuned_ones() -> None:
    costs = CorrectedLatency(ALONE.alone())
    for at in range(600):
        plain = at % 4 == 0 and at < 200
        tree, alone = Outcome(TREE, 5, 2, 0.1, 0.018, 0.0025, 3), Outcome(PLAIN, 1, 1, 0.1, 0.010, 0.0005)
        costs.observe(alone if plain else tree, 0 if plain else 3, 100)
        if at == 199:
            assert (costs.row_factor, costs.draft_factor) == pytest.approx((2, 0.5), rel=0.05)
    assert (costs.row_factor, costs.draft_factor) == pytest.approx((1, 1), rel=0.15)


def test_a_pass_of_one_row_behind_a_draft_is_no_plain_pass() -> None:
    """It is slower. Passes that tell nothing let the price of a row return to the tuned one as well."""
    costs = CorrectedLatency(ALONE.alone())
    for _ in range(400):
        costs.observe(Outcome(TREE, 1, 1, 0.1, 0.013, 0.0045, 1), 3, 100)
        costs.observe(Outcome(TREE, 5, 2, 0.1, 0.014, 0.0045, 1), 3, 100)
        costs.observe(Outcome(PLAIN, 1, 1, 0.1, 0.010, 0.0005), 0, 100)
    assert (costs.row_factor, costs.draft_factor) == pytest.approx((1, 1), rel=0.01)
    costs.row_factor = 8.0
    for _ in range(1000):
        costs.observe(Outcome(TREE, 1, 1, 0.1, 0.013, 0.0045, 1), 3, 100)
    assert costs.row_factor == pytest.approx(1, abs=0.02)


def test_while_nobody_drafts_the_price_of_drafting_returns_to_the_tuned_one() -> None:
    """A lane that stays plain because drafting was dear for a moment finds out that it is cheap again. Its trials are too rare to tell."""
    costs = CorrectedLatency(ALONE.alone())
    for _ in range(100):
        costs.observe(Outcome(TREE, 5, 2, 0.1, 0.014, 0.0165, 3), 3, 100)
        costs.observe(Outcome(PLAIN, 1, 1, 0.1, 0.010, 0.0005), 0, 100)
    assert costs.draft_factor == pytest.approx(4, rel=0.01)
    for at in range(4000):
        trial = at % 64 == 0
        costs.observe(Outcome(TREE, 5, 2, 0.1, 0.014, 0.0165, 60) if trial else Outcome(PLAIN, 1, 1, 0.1, 0.010, 0.0005), 3 * trial, 100)
        if at == 100:
            assert costs.draft_factor > 3
    assert costs.draft_factor == pytest.approx(1, abs=0.05)


def test_places_that_no_row_fills_are_not_taken_for_dear_rows() -> None:
    """Passes with one large tree among small ones take what the model says that its empty places take."""
    model = replace(MODEL, place_ms=tuple(0.5 for _ in MODEL.spans))
    costs = CorrectedLatency(model)
    for at in range(64):
        rows, widest = ((4, 1), (8, 5), (16, 4))[at % 3]
        costs.observe_pass(rows, 4, 100, model.verify(rows, 4, 100, widest), widest)
    assert costs.row_factor == pytest.approx(1, rel=0.02)
    assert costs.verify(8, 4, 100, 5) == pytest.approx(model.verify(8, 4, 100, 5), rel=0.02)
