"""`Decoder(lanes=N)` with TensorRT on an emulated GPU: every request gets what it gets alone on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime.backends.cuda.backend
from policy import FixedPolicy, Policy, TreeSpec
from policy.base import Observation
from runtime import Decoder, EngineDirError, EngineFailure, SamplingParams
from runtime.backends.cuda.bindings import LazyOutputs
from runtime.backends.cuda.lane_engine import LaneOutputs
from runtime.backends.lane_cache import LaneCache
from runtime.decoding.tree import Tree
from runtime.errors import GpuMemoryError
from runtime.lanes.choose import choose_lanes, lane_bytes
from runtime.manifest.load import load_manifest
from tests.support.decoder_lanes import LANES, Wandering, expect_same, forest_of
from tests.support.eagle_engines import prompt_of
from tests.support.gpu.beside_host import expect_ruled_answers
from tests.support.gpu.both_engines import make_engines
from tests.support.gpu.emulated_tensorrt import EmulatedMachine, altered
from tests.support.serve.serving import until
from tests.support.tensorrt_exports import unbuilt

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


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Without building plans, which the emulated GPU does not run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.tensorrt.plans.build_plan", unbuilt)
        return make_engines(tmp_path_factory.mktemp("lanes"), "--lanes", str(LANES))


@pytest.fixture
def device(machine: EmulatedMachine) -> Iterator[Decoder]:
    """It has all of its pages afterwards."""
    with machine.decoder(lanes=LANES) as decoder:
        yield decoder
        until(lambda: forest_of(decoder).idle)
        decoder.forget()
        for model in (forest_of(decoder).target, forest_of(decoder).draft):
            assert model.cache.pool.free == model.cache.pool.count == LANES


def test_lookups_give_the_host_s_answer(host: Decoder, machine: EmulatedMachine) -> None:
    """Chains from the text and from past answers; each request is asked twice."""
    with machine.decoder(lanes=LANES, draft="eagle+ngram", past_mib=1) as device:
        for prompt, params in requests(6, 5):
            expected = host.generate(prompt, params, policy="none").tokens
            first, again = (device.generate(prompt, params) for _ in range(2))
            assert first.tokens == again.tokens == expected
            assert again.stats.cycles <= first.stats.cycles


def test_rules_give_the_host_s_answer(host: Decoder, device: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_ruled_answers(host, device, LaneOutputs, monkeypatch)


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


def test_scores_are_read_of_sampled_requests_only(machine: EmulatedMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choices, and the features, are copied once for all lanes of a pass."""
    read: list[tuple[str, int]] = []
    rows = LazyOutputs.rows

    def counted(self: LazyOutputs, name: str, axis: int, part: slice) -> np.ndarray:
        read.append((name, part.stop - part.start))
        return rows(self, name, axis, part)

    with machine.decoder(draft="none", lanes=LANES) as device:
        monkeypatch.setattr(LazyOutputs, "rows", counted)
        streams = [device.stream(prompt_of(9), replace(SHORT, max_new_tokens=20)) for _ in range(3)]
        assert all(len(stream.result().tokens) == 20 for stream in streams)
        assert {name for name, _ in read} == {"next_token", "features"}
        passes = device.totals.passes
        assert passes < 3 * 19
        assert len(read) == 2 * (passes + 3)  # one more for each prompt
        sampled = device.stream(prompt_of(9), SamplingParams(max_new_tokens=20, temperature=0.9, seed=1))
        device.generate(prompt_of(9), replace(SHORT, max_new_tokens=20))
        sampled.result()
        assert [count for name, count in read if name == "logits"] == [1] * 20


def test_a_page_without_rows_in_a_pass_keeps_what_is_committed(machine: EmulatedMachine) -> None:
    """Whatever lies in its last slots, which are written; also where it has more rows than a tree."""
    with machine.decoder(draft="none", lanes=LANES) as device:
        target, cuda = forest_of(device).target, machine.cuda
        lanes = [LaneCache(target.cache) for _ in range(LANES)]
        for lane in lanes:
            lane.begin(1)
            for start in range(0, 250, 16):
                chunk = prompt_of(250)[start : start + 16]
                target.read_chunk(lane, chunk)
                target.commit([(lane, range(len(chunk)))])
        cuda.synchronize()
        whole = ctypes.string_at(target.cache._buffer.address, target.cache._buffer.bytes)
        for nodes in (1, 16, 40):
            target.verify([(lane, Tree.chain([5] * nodes)) for lane in (lanes[0], lanes[3])])
        cuda.synchronize()
        after = ctypes.string_at(target.cache._buffer.address, target.cache._buffer.bytes)
        shape = -1, LANES, target.cache._heads, target.cache.page_slots, target.cache._row // 4
        before, now = (np.frombuffer(each, np.float32).reshape(shape)[..., :250, :] for each in (whole, after))
        np.testing.assert_array_equal(now, before)
        for lane in lanes:
            lane.free()


def test_one_lane_loads_no_graph_with_lanes(host: Decoder, machine: EmulatedMachine) -> None:
    with machine.decoder() as device:
        expect_same(device.generate(prompt_of(9), SHORT), host.generate(prompt_of(9), SHORT))
    assert not [engine for engine in machine.trt.engines if ".lanes." in engine.file.name]


def test_lanes_that_the_plans_do_not_have_are_refused(machine: EmulatedMachine, tmp_path: Path) -> None:
    machine.cuda.closed = True
    with pytest.raises(EngineDirError, match=r"the engine's plans have 1 to 4 lanes, not 5 — use fewer, .* --lanes 5"):
        machine.decoder(lanes=5)
    with pytest.raises(EngineDirError, match="ONNX Runtime has several lanes on the CPU only"):
        machine.decoder(lanes=2, backend="onnxruntime")

    def without_lanes(manifest: dict[str, Any]) -> None:
        manifest["tensorrt"]["lanes"] = 1
        for name in ("target_lanes", "draft_lanes"):
            del manifest["graphs"][name]

    with pytest.raises(EngineDirError, match=r"no plans for several lanes — rebuild it: resps-export .* --lanes 2$"):
        Decoder(altered(machine, tmp_path, without_lanes), lanes=2)
    manifest = load_manifest(machine.directory)
    assert choose_lanes(manifest, None, 1, threads=1) == LANES
    assert choose_lanes(load_manifest(tmp_path / "copy"), None, 1, threads=1) == 1


def test_memory_for_the_caches_of_all_lanes_is_counted(machine: EmulatedMachine) -> None:
    manifest, overhead = load_manifest(machine.directory), runtime.backends.cuda.backend._OVERHEAD
    (weights, cache), (_, one) = (runtime.backends.cuda.backend._weight_and_cache_bytes(manifest, lanes) for lanes in (LANES, 1))
    assert cache == LANES * lane_bytes(manifest) == LANES * one
    with machine.decoder(lanes=LANES) as device:
        models = forest_of(device).target, forest_of(device).draft
        assert sum(model.cache._buffer.bytes for model in models) == cache
        machine.cuda.memory = machine.cuda.used() + weights + overhead + cache // 2
        with pytest.raises(GpuMemoryError, match=rf"{cache >> 20} cache of 4 times 250 tokens\) — use 2 lanes, or export again"):
            device.fork()
