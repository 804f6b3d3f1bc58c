"""Faults in a Decoder with lanes, and its end: every reader gets an end, the thread ends, and the neighbours never notice."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from policy import FixedPolicy, PartialTree, TreeSpec
from policy.base import Observation, Outcome
from runtime import Decoder, DecoderClosed, EngineFailure, SamplingParams
from tests.support.decoder_lanes import LANES, LONG, PROMPT, Wandering, expect_same, forest_of
from tests.support.serve.serving import until
from tests.support.toy_lanes import alone, answer_of, run_all, toy_forest, toy_lane


class Failing(Wandering):
    """Fails in the third round where it says."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def fail(self, where: str) -> None:
        if where == self.where and self.rounds > 3:
            raise ZeroDivisionError(where)

    def choose(self, observation: Observation) -> TreeSpec:
        self.fail("choose")
        spec = super().choose(observation)
        return None if self.where == "nothing" and self.rounds > 3 else spec  # type: ignore[return-value]

    def should_expand(self, partial_tree: PartialTree) -> bool:
        self.fail("should_expand")
        return super().should_expand(partial_tree)

    def num_nodes(self, partial_tree: PartialTree) -> int:
        self.fail("num_nodes")
        return super().num_nodes(partial_tree)

    def observe(self, outcome: Outcome) -> None:
        self.fail("observe")


@pytest.mark.parametrize("where", ["choose", "nothing", "should_expand", "num_nodes", "observe"])
def test_a_policy_that_fails_ends_its_request_alone(decoder: Decoder, where: str) -> None:
    expected = decoder.generate(PROMPT, SamplingParams(max_new_tokens=100))
    neighbour = decoder.stream(PROMPT, SamplingParams(max_new_tokens=100))
    with pytest.raises(AttributeError if where == "nothing" else ZeroDivisionError):
        decoder.generate([9, 8, 7], SamplingParams(max_new_tokens=200), policy=Failing(where))
    expect_same(neighbour.result(), expected)


def test_a_policy_sees_only_rounds_that_it_chose(decoder: Decoder) -> None:
    """A lookup's rounds are not its own, as with one lane."""
    seen: list[int] = []

    class Counting(Wandering):
        def __deepcopy__(self, memo: object) -> Counting:
            return self

        def observe(self, outcome: Outcome) -> None:
            seen.append(self.rounds)

    result = decoder.generate([5, 6, 7, 8] * 20, SamplingParams(max_new_tokens=200), policy=Counting())
    assert result.stats.cycles > len(seen) > 0  # or no lookup was tried
    assert seen == sorted(set(seen))


def test_a_request_that_cannot_begin_keeps_no_lane(decoder: Decoder) -> None:
    class Single(Wandering):
        def __deepcopy__(self, memo: object) -> Single:
            raise TypeError("there is one of me")

    for _ in range(LANES + 1):
        with pytest.raises(TypeError, match="there is one of me"):
            decoder.stream(PROMPT, policy=Single())


def thread_of(decoder: Decoder) -> threading.Thread:
    assert decoder._lanes is not None
    return decoder._lanes.driver._thread


def test_close_ends_every_reader_and_the_thread(decoder: Decoder) -> None:
    expected = decoder.generate(PROMPT, LONG)
    fork = decoder.fork()
    streams = [fork.stream(PROMPT, LONG) for _ in range(LANES)]
    with ThreadPoolExecutor(LANES) as pool:
        results = [pool.submit(stream.result) for stream in streams]
        until(lambda: streams[0].stats.new_tokens > 3)
        fork.close()
        for result in results:
            got = result.result(timeout=20)
            assert got.tokens == expected.tokens[: len(got.tokens)]
            assert got.stop in ("cancelled", expected.stop)
    assert not thread_of(fork).is_alive()
    fork.close()
    for call in (fork.warmup, fork.forget, fork.fork, lambda: fork.stream(PROMPT)):
        with pytest.raises(DecoderClosed):
            call()
    assert list(streams[0]) == []


@pytest.mark.parametrize("closed_by", ["reader", "observe"])
def test_close_inside_an_iteration_and_inside_a_round(decoder: Decoder, closed_by: str) -> None:
    fork = decoder.fork()

    class Closing(FixedPolicy):
        def __deepcopy__(self, memo: object) -> Closing:
            return self

        def observe(self, outcome: Outcome) -> None:
            if closed_by == "observe":
                fork.close()

    other = fork.stream(PROMPT, LONG)
    stream = fork.stream(PROMPT, LONG, policy=Closing(TreeSpec(4, 3, 1)))
    for _ in stream:
        if closed_by == "reader":
            fork.close()
    list(other)
    assert {stream.stop, other.stop} <= {"cancelled", "length", "eos"}
    thread_of(fork).join(20)
    assert not thread_of(fork).is_alive()
    with pytest.raises(DecoderClosed):
        fork.stream(PROMPT)


def test_a_dropped_decoder_ends_its_thread_after_the_running_requests(decoder: Decoder) -> None:
    expected = decoder.generate(PROMPT, SamplingParams(max_new_tokens=50))
    fork = decoder.fork()
    stream, thread, forest = fork.stream(PROMPT, SamplingParams(max_new_tokens=50)), thread_of(fork), weakref.ref(forest_of(fork))
    del fork
    gc.collect()
    expect_same(stream.result(), expected)
    thread.join(20)
    assert not thread.is_alive()
    del thread
    gc.collect()
    assert forest() is None


def test_a_fault_of_the_forest_reaches_every_reader_and_the_next_request_runs(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = decoder.generate(PROMPT, SamplingParams(max_new_tokens=50))
    forest = forest_of(decoder)
    for fault in (RuntimeError("broken"), SystemExit(3)):
        streams = [decoder.stream(PROMPT, SamplingParams(max_new_tokens=300)) for _ in range(LANES)]
        for stream in streams:
            next(stream)

        def fail(*_: object, fault: BaseException = fault) -> None:
            raise fault

        with monkeypatch.context() as patch:
            patch.setattr(forest, "_round", fail)
            errors = [ended_by(lambda stream=stream: list(stream)) for stream in streams]
        assert [str(error) for error in errors] == [str(fault)] * LANES
        assert len({id(error) for error in errors}) == LANES
        assert {stream.stop for stream in streams} == {"error"}
        expect_same(decoder.generate(PROMPT, SamplingParams(max_new_tokens=50)), expected)


def ended_by(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def test_a_reader_is_told_though_its_pages_cannot_be_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise EngineFailure("the device is lost")

    forest = toy_forest()
    lanes = [toy_lane(forest, prompt, SamplingParams(max_new_tokens=20)) for prompt in ([1, 2, 3], [4, 5, 6])]
    for lane in lanes:
        forest.admit(lane)
    forest.cycle()
    for lane in lanes:
        monkeypatch.setattr(lane.cache, "free", lost)
    forest.close([], EngineFailure("a pass failed"))
    for lane in lanes:
        with pytest.raises(EngineFailure, match="a pass failed"):
            answer_of(lane)
    assert not forest.lanes


def test_the_gap_that_a_request_leaves_is_closed_in_the_next_rounds() -> None:
    forest, random = toy_forest(3), np.random.default_rng(0)
    prompts = [random.integers(0, 11, 150).tolist() for _ in range(3)]
    lanes = [
        toy_lane(forest, prompt, SamplingParams(max_new_tokens=tokens, ignore_eos=True))
        for prompt, tokens in zip(prompts, (150, 5, 150), strict=True)
    ]
    for lane in lanes:
        forest.admit(lane)
    while lanes[1] in forest.lanes:
        forest.cycle()
    for _ in range(2):  # a page in each
        forest.cycle()
    for caches in ([lane.cache for lane in forest.lanes], [lane.draft.cache for lane in forest.lanes if lane.draft]):
        pages = sorted(page for cache in caches for page in cache.pages)
        assert pages == list(range(pages[0], pages[0] + len(pages)))
    run_all(forest)
    for lane in lanes:
        assert answer_of(lane)[0] == alone(lane.request.prompt, lane.request.params)
