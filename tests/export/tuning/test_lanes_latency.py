"""The latencies with several lanes, measured on a tiny engine."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import pytest

from export.tuning.replay.lanes_latency import _place, _whole, measure_lanes
from runtime import Decoder, SamplingParams
from tests.support.eagle_engines import prompt_of


def test_measured_costs_are_complete_and_leave_the_decoder_as_it_was(echo_engine: Path) -> None:
    params = SamplingParams(max_new_tokens=24)
    with Decoder(echo_engine, threads=1, lanes=4) as decoder:
        before = decoder.generate(prompt_of(20), params).tokens
        decoder.forget()
        shares: list[float] = []
        found = measure_lanes(decoder, (1, 2), (1, 2, 3), perf_counter(), shares.append)
        assert decoder.forest is not None
        assert decoder.forest.draft is not None
        assert all(cache.pool.free == cache.pool.count for cache in (decoder.forest.target.cache, decoder.forest.draft.cache))
        assert decoder.generate(prompt_of(20), params).tokens == before
    assert found.lanes == (1, 2, 4)
    assert found.rows[-1] == 32
    assert shares == sorted(shares)
    for table in found.verify_ms:
        for lanes, costs in zip(found.lanes, table, strict=True):
            assert len(costs) == len(found.rows)
            assert min(costs) > 0
            assert len(set(costs[: found.rows.index(lanes) + 1])) == 1  # a pass has a row a lane at least
    for by_width in found.draft_ms:
        for by_depth in by_width:
            assert list(by_depth) == sorted(by_depth)
            assert by_depth[0] > 0
    assert len(found.host_ms) == 3
    assert min(found.host_ms) > 0
    assert len(found.place_ms) == len(found.spans)
    assert list(found.place_ms) == sorted(found.place_ms)


def test_a_slow_moment_makes_no_pass_dearer_than_a_larger_one() -> None:
    measured = {(128, 2, 2): 10.0, (128, 2, 4): 90.0, (128, 2, 8): 16.0, (128, 2, 16): 24.0}
    assert _whole(measured, 128, 2, (1, 2, 4, 8, 16, 32)) == (10.0, 10.0, 16.0, 16.0, 24.0, 40.0)


def test_a_place_costs_what_a_large_tree_adds_to_as_many_rows() -> None:
    """Four lanes, 11 rows: attention has 4 x 8 places instead of 4 x 3."""
    assert _place([0.030, 0.090, 0.034], (4, 8, 16), (20.0, 24.0, 32.0), 4) == pytest.approx((34 - 27) / 20)
    assert _place([0.010], (4, 8, 16), (20.0, 24.0, 32.0), 4) == 0
