"""The TensorRT backend on an emulated GPU, which computes with the plans' ONNX files on the CPU: it answers as the CPU does."""

from __future__ import annotations

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime.backends.cuda.backend
import runtime.backends.cuda.tensorrt
import runtime.backends.cuda.tensorrt_module
import runtime.models
from export.tuning.install import install
from policy import PLAIN, FixedPolicy, TreeSpec
from runtime import Decoder, EngineFailure, SamplingParams
from runtime.backends.cuda.bindings import LazyOutputs
from runtime.errors import GpuMemoryError
from runtime.manifest.load import load_manifest
from tests.support.eagle_engines import prompt_of
from tests.support.gpu.beside_host import expect_one_conversation, expect_ruled_answers
from tests.support.gpu.both_engines import SIZES
from tests.support.gpu.emulated_tensorrt import EmulatedMachine, EmulatedTrt, altered
from tests.support.tunings import FAST, SLOW, a_tuning

TREES = [PLAIN, TreeSpec(2, 1, 1), TreeSpec(5, 3, 2), TreeSpec(16, 4, 4), TreeSpec(40, 9, 3)]


@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(temperature=0.8, top_k=12, top_p=0.9, seed=4)], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("draft", ["eagle+ngram", "eagle", "ngram", "none"])
def test_device_answers_as_the_host_does(
    host: Decoder, engines: tuple[Path, Path], machine: EmulatedMachine, draft: str, sampling: SamplingParams
) -> None:
    """With prompts that fill chunks exactly and partly, and answers across spans. The committed rows are the host's, too."""
    with machine.decoder(draft=draft) as device:
        for tree in TREES:
            for length in (1, 16, 45):
                options = {"params": replace(sampling, max_new_tokens=60), "policy": FixedPolicy(tree)}
                expected = host.generate(prompt_of(length), **options).tokens  # type: ignore[arg-type]
                assert device.generate(prompt_of(length), **options).tokens == expected  # type: ignore[arg-type]
                np.testing.assert_allclose(device.models.target.cache.rows(), host.models.target.cache.rows(), rtol=0, atol=1e-5)


def test_a_conversation_reuses_the_cached_prefix(host: Decoder, machine: EmulatedMachine) -> None:
    with machine.decoder() as device:
        expect_one_conversation(host, device, TREES[-1])


def test_rules_give_the_host_s_answer(host: Decoder, machine: EmulatedMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    with machine.decoder() as device:
        expect_ruled_answers(host, device, LazyOutputs, monkeypatch)


def test_forks_run_at_the_same_time_over_the_same_plans(host: Decoder, machine: EmulatedMachine) -> None:
    """They have their own streams and scratch memory. Closing one, even the first, leaves the others open."""
    options: dict[str, Any] = {"params": SamplingParams(max_new_tokens=40), "policy": FixedPolicy(TREES[3])}
    prompts = [prompt_of(length) for length in (3, 20, 45)]
    expected = [host.generate(prompt, **options).tokens for prompt in prompts]
    with ThreadPoolExecutor(3) as threads, machine.decoder() as first:
        plans = len(machine.trt.engines)
        forks = [first, first.fork()]
        forks.append(forks[1].fork())
        for at, closed in enumerate(forks):
            alive = forks[at:]
            answers = threads.map(lambda fork: [fork.generate(prompt, **options).tokens for prompt in prompts], alive)
            assert list(answers) == [expected] * len(alive)
            closed.close()
    assert len(machine.trt.engines) == plans
    assert len({each.stream for each in machine.cuda.streams}) == 3


def test_a_fork_that_does_not_fit_raises_and_frees_its_memory(machine: EmulatedMachine) -> None:
    with machine.decoder() as first:
        used, machine.cuda.memory = machine.cuda.used(), machine.cuda.used() + (1 << 20)
        with pytest.raises(GpuMemoryError, match=r"\(0 weights, "):
            first.fork()
        assert machine.cuda.used() == used
        assert first.generate(prompt_of(5), SamplingParams(max_new_tokens=3)).tokens


def test_enterprise_tensorrt_answers_too(host: Decoder, machine: EmulatedMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has neither a validity check nor a runtime configuration, and its plans are for one compute capability."""
    copy = altered(machine, tmp_path, lambda m: m["tensorrt"].update(flavour="tensorrt", compute_capabilities=["9.0"], gpu="Emulated"))
    machine.cuda.close()
    other = EmulatedMachine(copy, monkeypatch, EmulatedTrt)
    with other.decoder() as device:
        assert (
            device.generate(prompt_of(9), SamplingParams(max_new_tokens=40)).tokens
            == host.generate(prompt_of(9), SamplingParams(max_new_tokens=40)).tokens
        )
    assert other.cuda.leaked() == (0, 0)


def test_context_may_be_filled_to_the_last_token(host: Decoder, machine: EmulatedMachine) -> None:
    with machine.decoder() as device:
        assert device.generate(prompt_of(246)).tokens == host.generate(prompt_of(246)).tokens


@pytest.mark.parametrize(
    ("sampling", "copies"), [(SamplingParams(), 2), (SamplingParams(temperature=0.9, seed=1), 3)], ids=["greedy", "sampled"]
)
def test_each_round_reads_back_once_and_allocates_nothing(machine: EmulatedMachine, sampling: SamplingParams, copies: int) -> None:
    """A round captures and allocates nothing. It waits and downloads twice: the readback buffers, and one logit to check that it is finite.
    Sampling adds one download, for the drawn tokens."""
    cuda = machine.cuda
    with machine.decoder() as device:
        device.generate(prompt_of(20), replace(sampling, max_new_tokens=3))
        captured, alive = cuda.calls["capture_graph"], len(cuda._alive)
        with device.stream(prompt_of(33), replace(sampling, max_new_tokens=80)) as stream:
            next(stream)
            downloads, waits = cuda.downloads, cuda.waits_with_work
            stats = stream.result().stats
        assert cuda.downloads - downloads == copies * stats.cycles
        assert cuda.waits_with_work - waits == copies * stats.cycles
        assert (cuda.calls["capture_graph"], len(cuda._alive)) == (captured, alive)


def test_first_request_finds_every_cuda_graph(machine: EmulatedMachine) -> None:
    with machine.decoder() as device:
        captured = machine.cuda.calls["capture_graph"]
        assert device.generate(prompt_of(40), SamplingParams(max_new_tokens=150)).stats.cycles > 10
        assert machine.cuda.calls["capture_graph"] == captured
        calls = device.models.target._engine._calls  # type: ignore[attr-defined]
        assert len(calls) == (len(SIZES) + 1) * len(device.models.target.cache.spans())
        assert all(call.cuda_graph for call in calls.values())


def test_each_profile_has_one_context_in_a_shared_scratch_block(machine: EmulatedMachine) -> None:
    with machine.decoder() as device:
        device.generate(prompt_of(20), SamplingParams(max_new_tokens=20))
        for engine in machine.trt.engines:
            profiles = [context.profile for context in engine.contexts]
            assert len(set(profiles)) == len(profiles)
        target = next(engine for engine in machine.trt.engines if engine.file.name == "target.onnx")
        assert len(target.contexts) == len(SIZES)  # a prompt chunk fits one of them
        assert len({context._scratch for context in target.contexts}) == 1


def test_smallest_profile_that_admits_a_pass_is_taken(machine: EmulatedMachine) -> None:
    manifest = load_manifest(machine.directory)
    with machine.decoder() as device:
        device.generate(prompt_of(20), SamplingParams(max_new_tokens=20))
        for call in device.models.target._engine._calls.values():  # type: ignore[attr-defined]
            rows = call.bindings.device_inputs["tokens"].shape[1]
            profiles = manifest.graphs["target"].profiles
            narrower = [index for index in range(call.profile) if profiles[index]["n"][0] <= rows <= profiles[index]["n"][2]]
            assert all(call.bindings.device_inputs["rows"].shape[0] > profiles[index]["r"][2] for index in narrower)


def test_caches_are_bound_in_place_as_the_plan_says(machine: EmulatedMachine) -> None:
    with machine.decoder() as device:
        call = next(iter(device.models.target._engine._calls.values()))  # type: ignore[attr-defined]
        for layer in range(device.manifest.shape.layers):
            for kind in ("key", "value"):
                into, out = call.bindings.device_inputs[f"past.{layer}.{kind}"], call.bindings.device_outputs[f"present.{layer}.{kind}"]
                assert into.buffer == out.buffer
                assert into.shape == (1, device.manifest.shape.kv_heads, device.manifest.limits.capacity, device.manifest.shape.head_dim)


def test_a_failing_pass_raises_and_the_decoder_stays_usable(host: Decoder, machine: EmulatedMachine) -> None:
    with machine.decoder() as device:
        expected = host.generate(prompt_of(9), SamplingParams(max_new_tokens=30)).tokens
        for stage in ("target", "draft", "tree"):
            machine.trt.failing = stage
            shape = FixedPolicy(TreeSpec(16, 4, 4))
            for engine in (device.models.target._engine, device.models.drafter._engines.draft, device.models.drafter._engines.tree):  # type: ignore[attr-defined]
                engine._free_all()
            with pytest.raises(EngineFailure, match=f"a pass of {stage} failed inside TensorRT"):
                device.generate(prompt_of(9), SamplingParams(max_new_tokens=30), policy=shape)
            machine.trt.failing = ""
            assert device.generate(prompt_of(9), SamplingParams(max_new_tokens=30), policy=shape).tokens == expected


def test_evicted_cuda_graphs_are_captured_again(host: Decoder, machine: EmulatedMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.backends.cuda.tensorrt, "MAX_CALLS", 3)
    with machine.decoder() as device:
        destroyed = machine.cuda.calls["destroy_graph"]
        for tree in TREES[2:]:
            options = {"params": SamplingParams(max_new_tokens=30), "policy": FixedPolicy(tree)}
            expected = host.generate(prompt_of(45), **options).tokens  # type: ignore[arg-type]
            assert device.generate(prompt_of(45), **options).tokens == expected  # type: ignore[arg-type]
        assert machine.cuda.calls["destroy_graph"] > destroyed
        assert len(device.models.target._engine._calls) == 3  # type: ignore[attr-defined]


def test_nan_in_the_cache_is_cleared(host: Decoder, machine: EmulatedMachine) -> None:
    with machine.decoder() as device:
        device.generate(prompt_of(30), SamplingParams(max_new_tokens=20))
        cache = device.models.target.cache
        machine.cuda.synchronize()
        import ctypes

        ctypes.memset(cache._buffer.address, 0xFF, cache._buffer.bytes)  # type: ignore[attr-defined]
        assert (
            device.generate(prompt_of(9), SamplingParams(max_new_tokens=30)).tokens
            == host.generate(prompt_of(9), SamplingParams(max_new_tokens=30)).tokens
        )


def test_tuned_networks_run_as_plans(host: Decoder, engines: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers stay those of plain decoding, and every tuned network runs as a plan."""
    directory = Path(shutil.copytree(engines[1], tmp_path / "tuned"))
    slow = dataclasses.replace(SLOW, actions=((1, 0, 0), (5, 3, 2), (16, 4, 4)))
    fast = dataclasses.replace(FAST, tree=(5, 3, 2), sizes=(1, 2, 5))
    both = dataclasses.replace(fast, slow=slow.slow, actions=((1, 0, 0), (2, 2, 2), (5, 3, 2)))
    trained = {"resps": slow, "ltd": fast, "resps+ltd": both}
    install(directory, load_manifest(directory), a_tuning(directory, trained, threads=1))
    tuning = load_manifest(directory).tuning
    assert tuning is not None
    assert {Path(name).suffix for name in tuning.files} == {".onnx", ".plan"}
    machine = EmulatedMachine(directory, monkeypatch)
    with machine.decoder(threads=1) as device:
        for name in (*trained, "cost-model"):
            for sampling in (SamplingParams(), SamplingParams(temperature=0.8, seed=4)):
                expected = host.generate(prompt_of(20), replace(sampling, max_new_tokens=60), policy=FixedPolicy(PLAIN)).tokens
                assert device.generate(prompt_of(20), replace(sampling, max_new_tokens=60), policy=name).tokens == expected, name
    ran = {engine.file.name for engine in machine.trt.engines if engine.file.name.startswith("tuned") and engine.contexts}
    assert ran == {graph.file for graph in tuning.graphs.values()}
    assert tuning.graphs["ltd.depth"] == tuning.graphs["resps+ltd.depth"]  # one file, one plan
    assert machine.cuda.leaked() == (0, 0)
