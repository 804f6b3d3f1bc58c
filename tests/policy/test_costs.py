"""A latency model of another machine, corrected by a few measured points."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from policy import Costs, LatencyModel

# Milliseconds: a pass costs 20 and each row 1, a level of drafting 2.
ROWS = (1, 2, 4, 8, 16, 32, 64)
VERIFY = tuple(tuple(20.0 + span + rows for rows in ROWS) for span in (0, 10))
MODEL = LatencyModel(ROWS, (100, 1000), VERIFY, (1, 3), (1, 6), ((2.0, 12.0), (2.0, 12.0)), 0.5)
LANES = MODEL.for_lanes()


def costs(factor: float, row: float = 1.0, draft: float = 1.0, lanes: tuple[int, ...] = (1, 8)) -> Costs:
    """Of a machine that takes ``factor`` times as long, and for rows beyond one a lane and for drafts more."""
    plain = {count: LANES.verify(count, count, 50) for count in lanes}
    passes = {
        count: {each: factor * (plain[count] + row * (LANES.verify(count * each, count, 50) - plain[count])) for each in (1, 2, 4, 8)}
        for count in lanes
    }
    drafts = {count: {depth: factor * draft * LANES.draft(count, 3, depth) for depth in (1, 6)} for count in lanes}
    return Costs(passes, drafts, 3, 50)


def test_a_machine_that_is_slower_throughout_has_the_model_times_a_factor() -> None:
    found = LANES.corrected(costs(2.5))
    for lanes, rows, length in product((1, 3, 8), (1, 2, 5, 8), (0, 100, 500)):
        assert found.verify(lanes * rows, lanes, length) == pytest.approx(2.5 * LANES.verify(lanes * rows, lanes, length))
    assert found.draft(5, 2, 4) == pytest.approx(2.5 * LANES.draft(5, 2, 4))
    assert found.host(8) == pytest.approx(2.5 * LANES.host(8))


def test_rows_and_drafts_that_cost_more_here_do_so_in_the_model() -> None:
    found = LANES.corrected(costs(1.0, row=3.0, draft=2.0))
    for lanes, rows in product((1, 8), (1, 4, 8)):
        assert found.verify(lanes * rows, lanes, 50) == pytest.approx(
            LANES.verify(lanes, lanes, 50) + 3 * (LANES.verify(lanes * rows, lanes, 50) - LANES.verify(lanes, lanes, 50)), rel=0.03
        )
    assert found.verify(20, 4, 1000) > 1.2 * LANES.verify(20, 4, 1000)
    assert found.draft(2, 1, 3) == pytest.approx(2 * LANES.draft(2, 1, 3))


def test_what_was_not_measured_follows_the_plain_pass() -> None:
    found = LANES.corrected(Costs({1: {1: 2 * LANES.verify(1, 1, 0)}}, {}, 3, 0))
    assert found.verify(64, 8, 0) == pytest.approx(2 * LANES.verify(64, 8, 0))
    assert found.draft(8, 3, 6) == pytest.approx(2 * LANES.draft(8, 3, 6))


def test_one_lane_and_back() -> None:
    alone = MODEL.alone()
    assert alone.verify(5, 1, 300) == MODEL.verify(5, 300)
    assert alone.draft(1, 2, 4) == MODEL.draft(2, 4)
    found = alone.corrected(costs(2.0, lanes=(1,))).of_one()
    assert found.round(4, 2, 3, 200) == pytest.approx(2 * MODEL.round(4, 2, 3, 200))
    assert found.for_lanes().verify(4, 1, 200) == found.verify(4, 200)


def test_places_that_no_row_fills_scale_with_rows() -> None:
    model = replace(LANES, place_ms=(0.4,))
    assert model.corrected(costs(2.5)).place_ms == pytest.approx((1.0,))
    falling = replace(model, spans=(100, 1000), place_ms=(0.4, 0.1))
    assert falling.place(4000) == 0
