"""What a listener hears of the cycles of lanes: all tokens of all requests, with their trees and where these came from."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.decoding.cycle import CycleEvent
from runtime.decoding.loop import Round
from runtime.decoding.totals import TotalsRecorder
from runtime.lanes.lane import Lane
from runtime.request import Chunk
from runtime.sampling_params import Constraint, SamplingParams
from tests.support.toy_lanes import LIMITS, alone, answer_of, run_all, toy_forest, toy_lane

REPEATED = [3, 1, 4, 1, 5, 9, 2, 6] * 12
FORM = Constraint.choice(["ab:ab:ab:ab", "1,1,1,1,1"])


def drained(lane: Lane) -> list[Chunk]:
    chunks = []
    while not lane.chunks.empty():
        if isinstance(item := lane.chunks.get(), Chunk):
            chunks.append(item)
    return chunks


def expect_consistent(round_: Round) -> None:
    tree, path = round_.tree, round_.path
    assert path[0] == 0
    assert tree.parent[list(path[1:])].tolist() == list(path[:-1])
    assert tree.tokens[list(path[1:])].tolist() == list(round_.tokens[:-1])
    assert round_.draft_seconds + round_.verify_seconds <= round_.seconds


def test_every_token_is_heard_of_with_its_tree() -> None:
    heard: list[CycleEvent] = []
    recorder = TotalsRecorder(listener=heard.append)
    random, forest = np.random.default_rng(0), toy_forest(4)
    asked = [SamplingParams(max_new_tokens=30, rounds=at % 2 == 0, constraint=FORM if at == 1 else None) for at in range(6)]
    lanes = [toy_lane(forest, [*REPEATED, *random.integers(0, 11, 3).tolist()], params, recorder=recorder) for params in asked]
    for lane in lanes:
        forest.admit(lane)
    run_all(forest)
    sources = set()
    for lane, params in zip(lanes, asked, strict=True):
        chunks = drained(lane)
        rounds = [round_ for cycle in heard for number, round_ in cycle.rounds if number == lane.active.number]
        for round_ in rounds:
            expect_consistent(round_)
        assert [chunk.round for chunk in chunks if chunk.spec] == (rounds if params.rounds else [None] * len(rounds))
        assert all(chunk.tokens == round_.tokens[: len(chunk.tokens)] for chunk, round_ in zip(chunks[1:], rounds, strict=False))
        sources |= {round_.tree.source for round_ in rounds if round_.nodes > 1}
    assert sources == {"draft", "lookup", "forced"}
    assert sum(cycle.rows for cycle in heard) == sum(round_.nodes for cycle in heard for _, round_ in cycle.rounds)
    assert sum(cycle.read_rows for cycle in heard) >= len(REPEATED)
    assert all(cycle.read_rows <= LIMITS.prefill_rows and (cycle.rounds or cycle.read_rows) for cycle in heard)


def test_a_listener_that_fails_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: CycleEvent) -> None:
        raise ZeroDivisionError

    recorder, forest = TotalsRecorder(listener=fail), toy_forest(2)
    params = SamplingParams(max_new_tokens=12)
    lane = toy_lane(forest, REPEATED, params, recorder=recorder)
    forest.admit(lane)
    run_all(forest)
    assert answer_of(lane)[0] == alone(REPEATED, params)
    assert recorder.listener is None
    assert len(caplog.records) == 1
