"""The TensorRT backend on an emulated GPU (tests/support/gpu/emulated_gpu.py), which computes with the plans' ONNX files on the CPU."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
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
from runtime import Decoder, EngineDirError, EngineFailure, SamplingParams
from runtime.backends.cuda.driver import Gpu
from runtime.cli import command
from runtime.console import run_command
from runtime.errors import GpuMemoryError
from runtime.manifest.load import load_manifest
from tests.support.eagle_engines import export, prompt_of, write_echo
from tests.support.gpu.beside_host import expect_one_conversation
from tests.support.gpu.device_draws import DeviceDraws
from tests.support.gpu.emulated_tensorrt import EmulatedMachine, EmulatedTrt
from tests.support.tunings import FAST, SLOW, a_tuning

SIZES = (1, 2, 5, 16, 40)
TREES = [PLAIN, TreeSpec(2, 1, 1), TreeSpec(5, 3, 2), TreeSpec(16, 4, 4), TreeSpec(40, 9, 3)]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Engine directories for the CPU and for TensorRT, with the same weights in fp32."""
    folder = tmp_path_factory.mktemp("trt")
    write_echo(folder / "target", folder / "draft")
    sizes = "--max-context", "250", "--prefill-rows", "16"
    host = export(folder / "target", folder / "draft", folder / "host", *sizes)
    precise = "--backend", "tensorrt", "--precision", "fp32", "--draft-precision", "fp32", "--tree-sizes", ",".join(map(str, SIZES))
    return host, export(folder / "target", folder / "draft", folder / "device", *sizes, *precise)


@pytest.fixture
def host(engines: tuple[Path, Path]) -> Iterator[Decoder]:
    with Decoder(engines[0]) as decoder:
        yield decoder


@pytest.fixture
def machine(engines: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedMachine]:
    made = EmulatedMachine(engines[1], monkeypatch)
    yield made
    assert all(each.closed for each in made.cuda.streams)
    assert made.cuda.leaked() == (0, 0)


@pytest.fixture(autouse=True)
def host_draws_as_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.models, "GumbelMaxSampler", DeviceDraws)


@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(temperature=0.8, top_k=12, top_p=0.9, seed=4)], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("draft", ["eagle", "ngram", "none"])
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


Change = Callable[[dict[str, Any]], None]


def altered(machine: EmulatedMachine, tmp_path: Path, change: Change) -> Path:
    """A copy of the directory with a changed manifest."""
    copy = tmp_path / "copy"
    shutil.copytree(machine.directory, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


REJECTED: dict[str, tuple[Change, str]] = {
    "version": (
        lambda m: m["tensorrt"].update(version="1.0.0"),
        r"built with tensorrt_rtx 1.0.0, installed is .* — export again: resps-export",
    ),
    "gpu": (
        lambda m: m["tensorrt"].update(flavour="tensorrt", compute_capabilities=["8.0"], gpu="NVIDIA A100"),
        r"built for NVIDIA A100, this is Emulated \(9.0\) — export again here: resps-export",
    ),
    "profiles": (lambda m: m["graphs"]["target"]["profiles"].pop(), r"target.plan has 6 profiles, the manifest lists 5"),
    "memory": (lambda m: m["files"]["target.plan"].update(bytes=1 << 40), r"was changed after the export"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_directory_for_another_machine_is_rejected(machine: EmulatedMachine, tmp_path: Path, name: str) -> None:
    change, message = REJECTED[name]
    with pytest.raises(EngineDirError, match=message) as raised:
        Decoder(altered(machine, tmp_path, change))
    assert raised.value.exit_code == 3
    machine.cuda.closed = True


def test_truncated_or_replaced_plan_is_found(machine: EmulatedMachine, tmp_path: Path) -> None:
    copy = altered(machine, tmp_path, lambda m: None)
    plan = copy / "draft.plan"
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-1])
    with pytest.raises(EngineDirError, match=r"draft.plan was changed after the export — export again: resps-export"):
        Decoder(copy)
    plan.write_bytes(whole[::-1])
    with pytest.raises(EngineDirError, match=r"draft.plan was changed after the export"):
        Decoder(copy)
    assert not machine.cuda.calls
    with pytest.raises(EngineDirError, match=r"TensorRT cannot load .*draft.plan: made by another version, for another GPU, or damaged"):
        Decoder(copy, verify=False)


def test_a_plan_that_is_invalid_on_this_gpu_is_rejected(machine: EmulatedMachine) -> None:
    machine.trt.validity = machine.trt.EngineValidity.INVALID
    with pytest.raises(EngineDirError, match=r"TensorRT-RTX cannot run .*target.plan on this GPU .* — export again here: resps-export"):
        machine.decoder()


def test_a_cache_that_is_not_updated_in_place_is_rejected(machine: EmulatedMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    import tests.support.gpu.emulated_tensorrt

    monkeypatch.setattr(tests.support.gpu.emulated_tensorrt.EmulatedEngine, "get_aliased_input_tensor", lambda self, name: None)
    with pytest.raises(EngineDirError, match=r"target would copy its cache in every pass \(present.0.key is not in place\)"):
        machine.decoder()


def test_a_tree_without_a_profile_raises_and_lists_the_sizes(machine: EmulatedMachine) -> None:
    with pytest.raises(EngineDirError, match=r"no profile for trees of 7 nodes, only for 1, 2, 5, 16, 40 — .*--tree-sizes 1,2,5,7,16,40"):
        machine.decoder(policy=FixedPolicy(TreeSpec(7, 3, 3)))
    with machine.decoder() as device, pytest.raises(EngineDirError, match="no profile for trees of 6 nodes"):
        device.stream(prompt_of(3), policy=FixedPolicy(TreeSpec(6, 3, 3)))


def test_too_little_memory_names_the_needed_size_and_what_would_fit(machine: EmulatedMachine) -> None:
    manifest, overhead = load_manifest(machine.directory), runtime.backends.cuda.backend._OVERHEAD
    weights, cache = runtime.backends.cuda.backend._weight_and_cache_bytes(manifest)
    gpu = Gpu("Emulated", "9.0", 1 << 33)
    runtime.backends.cuda.backend.check_gpu(manifest, gpu, weights + cache + overhead)
    smaller = {weights + cache // 2 + overhead: "export again with --max-context 64", weights: "use a smaller model or precision"}
    for free, advice in smaller.items():
        with pytest.raises(GpuMemoryError, match=rf"{free >> 20} MiB free of 8192, the engines need about \d+ .*250 tokens\) — {advice}"):
            runtime.backends.cuda.backend.check_gpu(manifest, gpu, free)
    machine.cuda.memory = weights
    with pytest.raises(GpuMemoryError) as raised:
        machine.decoder()
    assert raised.value.exit_code == 1


def test_no_gpu_is_exit_code_3(engines: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    """Without the emulated GPU."""
    assert run_command(command, "resps-run", ["--engine-dir", str(engines[1]), "hello"]) == 3
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "no NVIDIA GPU can be used here" in err


def test_plans_need_a_gpu(machine: EmulatedMachine) -> None:
    with pytest.raises(EngineDirError, match=r"holds TensorRT plans, which need a GPU — .*"):
        machine.decoder(device="cpu")
    machine.cuda.closed = True


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
