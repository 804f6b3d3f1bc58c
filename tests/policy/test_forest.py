"""The closed form for several lanes: what it believes of a machine, who drafts, how deep, and who gets the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from policy import (
    PLAIN,
    CorrectedLatency,
    CorrectedRounds,
    FixedPolicy,
    Guarded,
    LaneHistory,
    LanesLatency,
    LatencyModel,
    Observation,
    Outcome,
    RowBudget,
    TablePolicy,
    TreeSpec,
    default_latency,
)
from tests.support.lanes_costs import LANES, MODEL


def test_interpolates_between_lanes_rows_and_spans() -> None:
    assert MODEL.verify(8, 4, 100) == pytest.approx(30)
    assert MODEL.verify(12, 3, 100) == pytest.approx(33.5)
    assert MODEL.verify(12, 3, 550) == pytest.approx(38)
    assert MODEL.verify(100, 8, 100) == pytest.approx(124)
    assert MODEL.draft(3, 2, 2) == pytest.approx(6)
    assert MODEL.draft(3, 2, 0) == 0
    assert CorrectedLatency(MODEL).passes(8, 92, 8, 100)[[0, 4, 92]] == pytest.approx([32, 36, 124], rel=0.01)  # it knows lengths in steps


def test_a_single_lane_says_what_several_may_cost() -> None:
    derived = default_latency(False).for_lanes()
    assert derived.verify(8, 8, 0) == default_latency(False).verify(8, 0)
    assert derived.draft(1, 2, 3) == default_latency(False).draft(2, 3)
    assert derived.draft(8, 2, 3) > derived.draft(2, 2, 3)
    assert LatencyModel((1,), (0,), ((1.0,),), (1,), (1,), ((1.0,),), 0.0, MODEL).for_lanes() is MODEL


def budget(lanes: int, **changes: float) -> RowBudget:
    made = RowBudget(CorrectedLatency(MODEL), 8 * lanes)
    made.begin_round(lanes, 100)
    for name, value in changes.items():
        setattr(made.latency, name, value)
    return made


def test_rows_go_to_the_best_set_of_candidates() -> None:
    """Against every set of three lanes' trees, on costs with steps."""
    random = np.random.default_rng(0)
    stepped = tuple(
        tuple(tuple(10.0 + 8 * (rows > 4) + 20 * (rows > 16) + 0.1 * rows for rows in range(1, 25)) for _ in LANES) for _ in (0,)
    )
    model = LanesLatency(LANES, tuple(range(1, 25)), (100,), stepped, (1,), (1,), tuple(((1.0,),) for _ in LANES), (0.0,) * 4)
    for _ in range(20):
        rows = RowBudget(CorrectedLatency(model), 24)
        rows.begin_round(3, 100)
        offers = [np.sort(random.random(4) ** 3)[::-1] for _ in range(3)]
        best = max(
            product(range(1, 6), repeat=3),
            key=lambda sizes: (
                sum(offer[: n - 1].sum() for offer, n in zip(offers, sizes, strict=True)) - rows.rate * model.verify(sum(sizes), 3, 100)
            ),
        )
        assert rows.nodes(offers, [5, 5, 5], []) == list(best)


def play(rows: RowBudget, rounds: int, accepted: list[int]) -> list[list[bool]]:
    """Rounds of lanes whose trees of four candidates have so many accepted; returns who drafted."""
    lanes, drafted = [LaneHistory() for _ in accepted], []
    for _ in range(rounds):
        rows.begin_round(len(lanes), 100)
        who = rows.participants(lanes, 3)
        drafted.append(who)
        if any(who):
            rows.observe_draft([sum(who)] * 3, 3, rows.latency.drafting([sum(who)] * 3, 3))
        for lane, drafts, tokens in zip(lanes, who, accepted, strict=True):
            if drafts:
                rows.observe_tree(lane, 1.0, tokens, 4)
        total = len(lanes) + 4 * sum(who)
        gained = len(lanes) + sum(tokens for drafts, tokens in zip(who, accepted, strict=True) if drafts)
        rows.observe_round(gained, total, MODEL.verify(total, len(lanes), 100))
    return drafted


def test_only_lanes_whose_trees_pay_draft() -> None:
    drafted = np.array(play(budget(4), 120, [3, 0, 3, 0]))
    assert drafted[40:, [0, 2]].all()
    assert 0 < drafted[40:, [1, 3]].mean() < 0.1  # tried again now and then


def test_one_lane_is_the_special_case() -> None:
    assert np.array(play(budget(1), 60, [3])).all()
    assert np.array(play(budget(1), 120, [0]))[60:].mean() < 0.1


def test_nobody_drafts_where_drafting_costs_too_much() -> None:
    assert np.array(play(budget(4), 60, [2, 2, 2, 2])).mean() == 1
    dear = tuple(tuple(tuple(30 * cost for cost in costs) for costs in table) for table in MODEL.draft_ms)
    rows = RowBudget(CorrectedLatency(replace(MODEL, draft_ms=dear)), 32)
    assert np.array(play(rows, 200, [2, 2, 2, 2]))[60:].mean() < 0.05


def test_where_nobody_drafts_few_lanes_are_tried() -> None:
    """A trial of all lanes would cost most of what sixteen plain ones gain."""
    drafted = np.array(play(budget(16), 300, [0] * 16)).sum(1)[60:]
    assert set(drafted) == {0, 4}
    assert (drafted > 0).mean() < 0.05


def test_a_request_that_ends_or_begins_is_a_reason_to_decide_again() -> None:
    """Sixteen lanes find no time for trees; two of them do, at once."""
    rows, lanes = budget(16), [LaneHistory() for _ in range(16)]
    for lane in lanes:
        for _ in range(40):
            rows.observe_tree(lane, 0.5, 1 if lane in lanes[:2] else 0, 4)
    rows.begin_round(16, 100)
    rows.participants(lanes, 3)
    resting = []
    for _ in range(3):
        rows.begin_round(16, 100)
        resting.append(any(rows.participants(lanes, 3)))
    rows.begin_round(2, 100)
    assert not any(resting)
    assert all(rows.participants(lanes[:2], 3))


def test_a_lane_that_gets_better_is_found_again() -> None:
    rows, lanes = budget(2), [LaneHistory(), LaneHistory()]
    drafted = []
    for at in range(800):
        rows.begin_round(2, 100)
        who = rows.participants(lanes, 3)
        drafted.append(who[1])
        tokens = [3, 0 if at < 300 else 3]
        for lane, drafts, got in zip(lanes, who, tokens, strict=True):
            if drafts:
                rows.observe_tree(lane, 1.0, got, 8)
        total = 2 + 8 * sum(who)
        gained = 2 + sum(got for drafts, got in zip(who, tokens, strict=True) if drafts)
        rows.observe_round(gained, total, MODEL.verify(total, 2, 100))
    assert np.mean(drafted[200:300]) < 0.2
    assert np.mean(drafted[700:]) == 1


def test_a_level_is_drafted_for_the_trees_that_it_pays_for() -> None:
    rows = budget(4)
    likely, unlikely = np.array([0.9, 0.05]), np.array([0.02, 0.01])
    assert rows.deeper([likely, unlikely, likely, unlikely], 1, 3) == [True, False, True, False]
    assert rows.deeper([unlikely, unlikely], 1, 3) == [False, False]


def test_trust_belongs_to_a_lane() -> None:
    rows, bold, shy = budget(2), LaneHistory(), LaneHistory()
    scores = np.log([0.5, 0.25])
    assert rows.probabilities(bold, scores) == pytest.approx([0.5, 0.25])
    for _ in range(30):
        rows.observe_tree(bold, 1.0, 2, 4)
        rows.observe_tree(shy, 1.0, 0, 4)
    good, bad = rows.probabilities(bold, scores), rows.probabilities(shy, scores)
    assert good[0] > 0.7
    assert bad[0] < 0.25
    assert (good <= 1).all()


def observed(lanes: int) -> Observation:
    return Observation(100, 50, lambda: np.zeros(0), lanes=lanes)


def test_the_table_has_a_tree_for_every_number_of_lanes() -> None:
    trees = (TreeSpec(8, 4, 2), TreeSpec(3, 2, 1), PLAIN)
    policy = TablePolicy(trees)
    assert [policy.choose(observed(lanes)) for lanes in (1, 2, 3, 9)] == [*trees, PLAIN]
    assert policy.trees == trees


@pytest.mark.parametrize(("lanes", "tokens", "paused"), [(1, 1, True), (1, 3, False), (8, 2, True), (8, 4, False)])
def test_a_guarded_tree_pauses_where_it_loses_against_plain_decoding(lanes: int, tokens: int, paused: bool) -> None:
    """At eight lanes a tree that would pay alone does not."""
    policy, plain = Guarded(FixedPolicy(TreeSpec(6, 3, 2)), CorrectedLatency(MODEL)), 0
    policy.begin()
    for _ in range(100):
        spec = policy.choose(observed(lanes))
        plain += spec == PLAIN
        policy.observe(Outcome(spec, spec.nodes, 1 if spec == PLAIN else tokens, 9.0))
    assert (plain > 40) == paused


def test_alone_the_guard_counts_as_the_watchdog_does() -> None:
    costs = CorrectedLatency(MODEL)
    policy, rounds = Guarded(FixedPolicy(TreeSpec(6, 3, 2)), costs), CorrectedRounds(costs)
    policy.choose(observed(1))
    policy.observe(Outcome(TreeSpec(6, 3, 2), 6, 2, 1.0))
    plain, whole = (rounds.round_with(tree, 100) for tree in (PLAIN, TreeSpec(6, 3, 2)))
    assert policy._backoff._mean_advantage * 32 == pytest.approx(2 * plain - whole)


def test_drafting_after_a_pause_teaches_no_cost() -> None:
    rows = budget(2)
    for _ in range(20):
        rows.observe_draft([2, 2], 3, None)
    assert rows.latency.draft_factor == 1


def test_trees_of_different_sizes_pay_for_the_places_that_they_leave_empty() -> None:
    """Attention has as many places in every lane as the largest tree has rows. The choice is the best one of all."""
    model = replace(MODEL, place_ms=tuple(0.3 for _ in MODEL.spans))
    assert model.verify(8, 4, 100, 2) == model.verify(8, 4, 100) == MODEL.verify(8, 4, 100)
    assert model.verify(8, 4, 100, 5) == pytest.approx(MODEL.verify(8, 4, 100) + 0.3 * 4 * 3)
    random = np.random.default_rng(5)
    uneven = 0
    for _ in range(60):
        rows = RowBudget(CorrectedLatency(model), 24)
        rows.begin_round(3, 100)
        offers = [np.sort(random.random(4) ** 2)[::-1] for _ in range(3)]

        def worth(sizes: Sequence[int], rows: RowBudget = rows, offers: Sequence[np.ndarray] = tuple(offers)) -> float:
            gained = sum(offer[: n - 1].sum() for offer, n in zip(offers, sizes, strict=True))
            return float(gained - rows.rate * rows.latency.verify(sum(sizes), 3, 100, max(sizes)))

        chosen = rows.nodes(offers, [5, 5, 5], [])
        assert worth(chosen) >= max(map(worth, product(range(1, 6), repeat=3))) - 1e-6
        uneven += len(set(chosen)) > 1
    assert uneven > 10
