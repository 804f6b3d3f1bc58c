"""`Decoder(lanes=N)` with TensorRT on an emulated GPU: every request gets what it gets alone on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from policy import FixedPolicy, Policy, TreeSpec
from policy.base import Observation
from runtime import Decoder, EngineFailure, SamplingParams
from tests.support.decoder_lanes import LANES, Wandering, expect_same, forest_of
from tests.support.eagle_engines import prompt_of
from tests.support.gpu.emulated_tensorrt import EmulatedMachine
from tests.support.serve.serving import until

WIDE = FixedPolicy(TreeSpec(40, 9, 3))
POLICIES: list[Policy | str | None] = [None, "none", "fixed", FixedPolicy(TreeSpec(16, 4, 4)), Wandering(), WIDE]
SHORT = SamplingParams(max_new_tokens=30)


def requests(count: int, seed: int) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of every length, some with the same beginning; greedy and sampled, with and without log-probabilities."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        prompt = [*(prompt_of(45) if number % 3 == 0 else []), *random.integers(3, 100, int(random.integers(1, 60))).tolist()]
        sampling = SamplingParams() if number % 2 else SamplingParams(temperature=float(random.uniform(0.4, 1.3)), top_p=0.95, seed=number)
        made.append((prompt, replace(sampling, max_new_tokens=int(random.integers(1, 50)), logprobs=2 if number % 4 < 2 else None)))
    return made


@pytest.fixture
def device(machine: EmulatedMachine) -> Iterator[Decoder]:
    """It has all of its pages afterwards."""
    with machine.decoder(lanes=LANES) as decoder:
        yield decoder
        until(lambda: forest_of(decoder).idle)
        decoder.forget()
        for model in (forest_of(decoder).target, forest_of(decoder).draft):
            assert model.cache.pool.free == model.cache.pool.count == LANES


@pytest.mark.parametrize("draft", ["eagle", "ngram", "none"])
def test_many_threads_get_what_each_request_gets_alone(host: Decoder, machine: EmulatedMachine, draft: str) -> None:
    """Law: mixtures of requests, and of trees that no profile admits together, give the answers of one lane on the CPU."""
    wanted = requests(18, len(draft))
    alone = [host.generate(*request, policy="none") for request in wanted]
    with machine.decoder(draft=draft, lanes=LANES) as decoder:
        for request, expected in zip(wanted[:3], alone[:3], strict=True):
            for policy in POLICIES:
                expect_same(decoder.generate(*request, policy=policy), expected)
        with ThreadPoolExecutor(LANES) as pool:
            results = list(pool.map(lambda at: decoder.generate(*wanted[at], policy=POLICIES[at % len(POLICIES)]), range(len(wanted))))
        for result, expected in zip(results, alone, strict=True):
            expect_same(result, expected)
        assert decoder.totals.passes < sum(decoder.totals.actions.values())


def test_trees_that_no_profile_admits_together_are_verified_in_several_passes(host: Decoder, device: Decoder) -> None:
    prompts = [prompt_of(length) for length in (9, 20, 33, 45)]
    with ThreadPoolExecutor(LANES) as pool:
        results = list(pool.map(lambda prompt: device.generate(prompt, SHORT, policy=WIDE), prompts))
    for prompt, result in zip(prompts, results, strict=True):
        expect_same(result, host.generate(prompt, SHORT))


def test_a_context_may_be_filled_to_the_last_token_beside_others(host: Decoder, device: Decoder) -> None:
    """A shorter lane's columns lie behind its own; near the end of a page there must be room for them."""
    prompts, params = [prompt_of(length) for length in (246, 3, 240, 100)], SamplingParams(max_new_tokens=None)
    for policy in ("none", WIDE):
        with ThreadPoolExecutor(LANES) as pool:
            results = list(pool.map(lambda prompt, policy=policy: device.generate(prompt, params, policy=policy), prompts))
        for prompt, result in zip(prompts, results, strict=True):
            expect_same(result, host.generate(prompt, params, policy="none"))


def test_ends_of_every_kind_leave_the_neighbours_alone(host: Decoder, device: Decoder) -> None:
    class Failing(Wandering):
        def choose(self, observation: Observation) -> TreeSpec:
            if self.rounds > 3:
                raise RuntimeError("a policy failed")
            return super().choose(observation)

    sampling, prompt = SamplingParams(max_new_tokens=60, temperature=0.7, seed=3), prompt_of(20)
    whole = host.generate(prompt, sampling)
    place = next(place for place in range(8, 50) if whole.text[place : place + 2].isascii())
    for _ in range(3):
        with device.stream(prompt, sampling) as neighbour:
            stop = whole.text[place : place + 2]
            stopped = device.generate(prompt, replace(sampling, stop=[stop]))
            assert (stopped.stop, stopped.text) == ("stop_string", whole.text[: whole.text.index(stop)])
            assert device.generate(prompt, replace(sampling, deadline=0)).stop == "deadline"
            cancelled = device.stream(prompt, sampling)
            next(cancelled)
            cancelled.cancel()
            tokens = tuple(token for chunk in cancelled for token in chunk.tokens)
            assert tokens == whole.tokens[1 : 1 + len(tokens)]
            with pytest.raises(RuntimeError, match="a policy failed"):
                device.generate(prompt, sampling, policy=Failing())
            expect_same(neighbour.result(), whole)


def test_a_failing_pass_ends_its_requests_and_the_decoder_stays_usable(
    host: Decoder, machine: EmulatedMachine, device: Decoder, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing draft ends none."""
    expected = host.generate(prompt_of(9), SHORT)
    for name in ("draft", "target"):
        machine.trt.failing = name
        for model in (forest_of(device).target, forest_of(device).draft):
            model._engine._engine._free_all()
        if name == "target":
            with pytest.raises(EngineFailure, match="a pass of target_lanes failed inside TensorRT"):
                device.generate(prompt_of(9), SHORT)
        else:
            expect_same(device.generate(prompt_of(9), SHORT, policy="fixed"), expected)
            assert "draft: a pass of draft_lanes failed inside TensorRT" in caplog.text
        machine.trt.failing = ""
        device.forget()
        expect_same(device.generate(prompt_of(9), SHORT, policy="fixed"), expected)


def test_numbers_that_are_not_finite_end_only_their_request(host: Decoder, machine: EmulatedMachine, device: Decoder) -> None:
    """They leave nothing in the cache."""
    import ctypes

    with device.stream(prompt_of(33), SamplingParams(max_new_tokens=150)) as first:
        broken = device.stream(prompt_of(20), SamplingParams(max_new_tokens=150))
        next(broken)
        pages = forest_of(device).target.cache
        lane = next(each for each in forest_of(device).lanes if each.request.prompt == prompt_of(20))
        ctypes.memset(pages._address(0, lane.cache.pages[0]), 0xFF, 256)
        with pytest.raises(EngineFailure, match="not finite"):
            broken.result()
        expect_same(first.result(), host.generate(prompt_of(33), SamplingParams(max_new_tokens=150)))
    expect_same(device.generate(prompt_of(20), SHORT), host.generate(prompt_of(20), SHORT))


def test_shared_beginnings_are_not_computed_again(host: Decoder, device: Decoder) -> None:
    system = prompt_of(90)
    first = device.generate([*system, 7], SHORT)
    assert first.stats.cached_prompt_tokens == 0
    streams = [device.stream([*system, 8, number], SHORT) for number in range(3, 6)]
    results = [stream.result() for stream in streams]
    assert all(each.stats.cached_prompt_tokens >= 88 for each in results)
    for number, result in zip(range(3, 6), results, strict=True):
        expect_same(result, host.generate([*system, 8, number], SHORT))
    device.forget()
    assert device.generate([*system, 7], SHORT).stats.cached_prompt_tokens == 0


def test_a_fork_has_lanes_of_its_own(host: Decoder, machine: EmulatedMachine, device: Decoder) -> None:
    plans = len(machine.trt.engines)
    with device.fork() as fork:
        fork.warmup()
        streams = [each.stream(prompt_of(9), SHORT) for each in [fork, device] * LANES]
        for stream in streams:
            expect_same(stream.result(), host.generate(prompt_of(9), SHORT))
    assert len(machine.trt.engines) == plans
    assert {engine.file.name for engine in machine.trt.engines} == {"target.lanes.onnx", "draft.lanes.onnx", "fuse.onnx"}


def test_rounds_of_greedy_requests_read_no_logits(machine: EmulatedMachine) -> None:
    """A round copies the choices, the features and one logit of each lane to the host; sampled lanes add their own scores."""
    with machine.decoder(lanes=2, draft="none") as device:

        def downloads(params: SamplingParams) -> float:
            with device.stream(prompt_of(9), params) as stream:
                next(stream)
                before = machine.cuda.downloads
                rounds = stream.result().stats.cycles
            return (machine.cuda.downloads - before) / rounds

        device.generate(prompt_of(9), SHORT)
        assert downloads(replace(SHORT, max_new_tokens=100)) <= 3
        assert 3 < downloads(SamplingParams(max_new_tokens=100, temperature=0.9, seed=1)) <= 4
