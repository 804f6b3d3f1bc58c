"""The TensorRT backend on an emulated GPU (tests/support/gpu/emulated_gpu.py): real plans, real bookkeeping, the CPU's arithmetic."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
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
from tests.support.gpu.emulated_gpu import EmulatedCuda, EmulatedRtx, EmulatedTrt
from tests.support.tunings import FAST, SLOW, a_tuning

SIZES = (1, 2, 5, 16, 40)
TREES = [PLAIN, TreeSpec(2, 1, 1), TreeSpec(5, 3, 2), TreeSpec(16, 4, 4), TreeSpec(40, 9, 3)]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(for the CPU, for TensorRT), the same weights in fp32."""
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


class Place:
    """An emulated GPU, its TensorRT, and a Decoder on them."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, kind: type[EmulatedTrt] = EmulatedRtx) -> None:
        self.directory, self.cuda = directory, EmulatedCuda()
        self.trt: Any = kind(directory, self.cuda)
        streams = chain((self.cuda,), iter(self.cuda.another, None))  # every Decoder its own
        monkeypatch.setattr(runtime.backends.cuda.backend, "Cuda", lambda: next(streams))
        monkeypatch.setattr(runtime.backends.cuda.tensorrt_module, "load", lambda flavour: self.trt)
        monkeypatch.setattr(runtime.backends.cuda.tensorrt_module, "logger", lambda module: None)

    def decoder(self, **options: Any) -> Decoder:
        return Decoder(self.directory, **options)


@pytest.fixture
def place(engines: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(engines[1], monkeypatch)
    yield made
    assert all(each.closed for each in made.cuda.streams)
    assert made.cuda.leaked() == (0, 0)


@pytest.fixture(autouse=True)
def host_draws_as_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.models, "GumbelMax", DeviceDraws)


@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(temperature=0.8, top_k=12, top_p=0.9, seed=4)], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("draft", ["eagle", "ngram", "none"])
def test_device_answers_as_the_host_does(
    host: Decoder, engines: tuple[Path, Path], place: Place, draft: str, sampling: SamplingParams
) -> None:
    """Prompts that fill chunks exactly and not, answers across spans; what was committed is what the host committed."""
    with place.decoder(draft=draft) as device:
        for tree in TREES:
            for length in (1, 16, 45):
                options = {"params": replace(sampling, max_new_tokens=60), "policy": FixedPolicy(tree)}
                expected = host.generate(prompt_of(length), **options).tokens  # type: ignore[arg-type]
                assert device.generate(prompt_of(length), **options).tokens == expected  # type: ignore[arg-type]
                np.testing.assert_allclose(device._target.cache.rows(), host._target.cache.rows(), rtol=0, atol=1e-5)


def test_a_conversation_goes_on_from_what_the_cache_holds(host: Decoder, place: Place) -> None:
    with place.decoder() as device:
        expect_one_conversation(host, device, TREES[-1])


def test_forks_run_at_the_same_time_over_the_same_plans(host: Decoder, place: Place) -> None:
    """In streams and scratch memory of their own; closing one, even the first, leaves the others alive."""
    options: dict[str, Any] = {"params": SamplingParams(max_new_tokens=40), "policy": FixedPolicy(TREES[3])}
    prompts = [prompt_of(length) for length in (3, 20, 45)]
    expected = [host.generate(prompt, **options).tokens for prompt in prompts]
    with ThreadPoolExecutor(3) as threads, place.decoder() as first:
        plans = len(place.trt.engines)
        forks = [first, first.fork()]
        forks.append(forks[1].fork())
        for at, closed in enumerate(forks):
            alive = forks[at:]
            came = threads.map(lambda fork: [fork.generate(prompt, **options).tokens for prompt in prompts], alive)
            assert list(came) == [expected] * len(alive)
            closed.close()
    assert len(place.trt.engines) == plans
    assert len({each.stream for each in place.cuda.streams}) == 3


def test_a_fork_that_does_not_fit_is_refused_and_frees_what_it_took(place: Place) -> None:
    with place.decoder() as first:
        used, place.cuda.memory = place.cuda.used(), place.cuda.used() + (1 << 20)
        with pytest.raises(GpuMemoryError, match=r"\(0 weights, "):
            first.fork()
        assert place.cuda.used() == used
        assert first.generate(prompt_of(5), SamplingParams(max_new_tokens=3)).tokens


def test_enterprise_tensorrt_answers_too(host: Decoder, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has neither validity nor configuration, and its plans belong to one compute capability."""
    copy = altered(place, tmp_path, lambda m: m["tensorrt"].update(flavour="tensorrt", compute_capabilities=["9.0"], gpu="Emulated"))
    place.cuda.close()
    other = Place(copy, monkeypatch, EmulatedTrt)
    with other.decoder() as device:
        assert (
            device.generate(prompt_of(9), SamplingParams(max_new_tokens=40)).tokens
            == host.generate(prompt_of(9), SamplingParams(max_new_tokens=40)).tokens
        )
    assert other.cuda.leaked() == (0, 0)


def test_context_may_be_filled_to_the_last_token(host: Decoder, place: Place) -> None:
    with place.decoder() as device:
        assert device.generate(prompt_of(246)).tokens == host.generate(prompt_of(246)).tokens


@pytest.mark.parametrize(
    ("sampling", "copies"), [(SamplingParams(), 2), (SamplingParams(temperature=0.9, seed=1), 3)], ids=["greedy", "sampled"]
)
def test_one_copy_comes_down_each_cycle_and_nothing_is_made_anew(place: Place, sampling: SamplingParams, copies: int) -> None:
    """No recording, no allocation, two waits and downloads a cycle: the mailbox, and one logit, which must be a number; when sampling one
    more, for the tokens that were drawn."""
    cuda = place.cuda
    with place.decoder() as device:
        device.generate(prompt_of(20), replace(sampling, max_new_tokens=3))
        recorded, alive = cuda.calls["record"], len(cuda._alive)
        with device.stream(prompt_of(33), replace(sampling, max_new_tokens=80)) as stream:
            next(stream)
            downloads, waits = cuda.downloads, cuda.waits_with_work
            stats = stream.result().stats
        assert cuda.downloads - downloads == copies * stats.cycles
        assert cuda.waits_with_work - waits == copies * stats.cycles
        assert (cuda.calls["record"], len(cuda._alive)) == (recorded, alive)


def test_first_request_finds_every_recording(place: Place) -> None:
    with place.decoder() as device:
        recorded = place.cuda.calls["record"]
        assert device.generate(prompt_of(40), SamplingParams(max_new_tokens=150)).stats.cycles > 10
        assert place.cuda.calls["record"] == recorded
        calls = device._target._engine._calls  # type: ignore[attr-defined]
        assert len(calls) == (len(SIZES) + 1) * len(device._target.cache.spans())
        assert all(call.graph for call in calls.values())


def test_contexts_are_one_per_profile_in_one_scratch_block(place: Place) -> None:
    with place.decoder() as device:
        device.generate(prompt_of(20), SamplingParams(max_new_tokens=20))
        for engine in place.trt.engines:
            profiles = [context.profile for context in engine.contexts]
            assert len(set(profiles)) == len(profiles)
        target = next(engine for engine in place.trt.engines if engine.file.name == "target.onnx")
        assert len(target.contexts) == len(SIZES)  # a chunk of the prompt fits into one of them
        assert len({context._scratch for context in target.contexts}) == 1


def test_smallest_profile_that_admits_a_pass_is_taken(place: Place) -> None:
    manifest = load_manifest(place.directory)
    with place.decoder() as device:
        device.generate(prompt_of(20), SamplingParams(max_new_tokens=20))
        for call in device._target._engine._calls.values():  # type: ignore[attr-defined]
            rows = call.bindings.bound_inputs["tokens"].shape[1]
            profiles = manifest.graphs["target"].profiles
            narrower = [index for index in range(call.profile) if profiles[index]["n"][0] <= rows <= profiles[index]["n"][2]]
            assert all(call.bindings.bound_inputs["rows"].shape[0] > profiles[index]["r"][2] for index in narrower)


def test_caches_are_bound_in_place_as_the_plan_says(place: Place) -> None:
    with place.decoder() as device:
        call = next(iter(device._target._engine._calls.values()))  # type: ignore[attr-defined]
        for layer in range(device.manifest.shape.layers):
            for kind in ("key", "value"):
                into, out = call.bindings.bound_inputs[f"past.{layer}.{kind}"], call.bindings.bound_outputs[f"present.{layer}.{kind}"]
                assert into.buffer == out.buffer
                assert into.shape == (1, device.manifest.shape.kv_heads, device.manifest.limits.capacity, device.manifest.shape.head_dim)


def test_failing_pass_is_a_typed_error_and_the_decoder_lives_on(host: Decoder, place: Place) -> None:
    with place.decoder() as device:
        expected = host.generate(prompt_of(9), SamplingParams(max_new_tokens=30)).tokens
        for stage in ("target", "draft", "tree"):
            place.trt.failing = stage
            shape = FixedPolicy(TreeSpec(16, 4, 4))
            for engine in (device._target._engine, device._drafter._engines.draft, device._drafter._engines.tree):  # type: ignore[attr-defined]
                engine._drop()
            with pytest.raises(EngineFailure, match=f"a pass of {stage} failed inside TensorRT"):
                device.generate(prompt_of(9), SamplingParams(max_new_tokens=30), policy=shape)
            place.trt.failing = ""
            assert device.generate(prompt_of(9), SamplingParams(max_new_tokens=30), policy=shape).tokens == expected


def test_recordings_that_make_room_are_freed_and_made_again(host: Decoder, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.backends.cuda.tensorrt, "MAX_CALLS", 3)
    with place.decoder() as device:
        discarded = place.cuda.calls["discard"]
        for tree in TREES[2:]:
            options = {"params": SamplingParams(max_new_tokens=30), "policy": FixedPolicy(tree)}
            expected = host.generate(prompt_of(45), **options).tokens  # type: ignore[arg-type]
            assert device.generate(prompt_of(45), **options).tokens == expected  # type: ignore[arg-type]
        assert place.cuda.calls["discard"] > discarded
        assert len(device._target._engine._calls) == 3  # type: ignore[attr-defined]


def test_not_a_number_in_the_cache_does_not_stay(host: Decoder, place: Place) -> None:
    with place.decoder() as device:
        device.generate(prompt_of(30), SamplingParams(max_new_tokens=20))
        cache = device._target.cache
        place.cuda.synchronize()
        import ctypes

        ctypes.memset(cache._buffer.address, 0xFF, cache._buffer.bytes)  # type: ignore[attr-defined]
        assert (
            device.generate(prompt_of(9), SamplingParams(max_new_tokens=30)).tokens
            == host.generate(prompt_of(9), SamplingParams(max_new_tokens=30)).tokens
        )


Change = Callable[[dict[str, Any]], None]


def altered(place: Place, tmp_path: Path, change: Change) -> Path:
    """A copy of the directory whose manifest is changed."""
    copy = tmp_path / "copy"
    shutil.copytree(place.directory, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


REFUSED: dict[str, tuple[Change, str]] = {
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


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_surroundings_are_one_clear_line(place: Place, tmp_path: Path, name: str) -> None:
    change, says = REFUSED[name]
    with pytest.raises(EngineDirError, match=says) as raised:
        Decoder(altered(place, tmp_path, change))
    assert raised.value.exit_code == 3
    place.cuda.closed = True


def test_truncated_or_replaced_plan_is_found(place: Place, tmp_path: Path) -> None:
    copy = altered(place, tmp_path, lambda m: None)
    plan = copy / "draft.plan"
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-1])
    with pytest.raises(EngineDirError, match=r"draft.plan was changed after the export — export again: resps-export"):
        Decoder(copy)
    plan.write_bytes(whole[::-1])
    with pytest.raises(EngineDirError, match=r"draft.plan was changed after the export"):
        Decoder(copy)
    assert not place.cuda.calls
    with pytest.raises(EngineDirError, match=r"TensorRT cannot load .*draft.plan: made by another version, for another GPU, or damaged"):
        Decoder(copy, verify=False)


def test_gpu_that_the_plan_refuses(place: Place) -> None:
    place.trt.validity = place.trt.EngineValidity.INVALID
    with pytest.raises(EngineDirError, match=r"TensorRT-RTX cannot run .*target.plan on this GPU .* — export again here: resps-export"):
        place.decoder()


def test_cache_that_is_not_in_place_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import tests.support.gpu.emulated_gpu

    monkeypatch.setattr(tests.support.gpu.emulated_gpu.EmulatedEngine, "get_aliased_input_tensor", lambda self, name: None)
    with pytest.raises(EngineDirError, match=r"target would copy its cache in every pass \(present.0.key is not in place\)"):
        place.decoder()


def test_tree_without_a_profile_lists_those_there_are(place: Place) -> None:
    with pytest.raises(EngineDirError, match=r"no profile for trees of 7 nodes, only for 1, 2, 5, 16, 40 — .*--tree-sizes 1,2,5,7,16,40"):
        place.decoder(policy=FixedPolicy(TreeSpec(7, 3, 3)))
    with place.decoder() as device, pytest.raises(EngineDirError, match="no profile for trees of 6 nodes"):
        device.stream(prompt_of(3), policy=FixedPolicy(TreeSpec(6, 3, 3)))


def test_too_little_memory_says_how_much_and_what_would_fit(place: Place) -> None:
    manifest, work = load_manifest(place.directory), runtime.backends.cuda.backend._WORK
    weights, cache = runtime.backends.cuda.backend._bytes(manifest)
    gpu = Gpu("Emulated", "9.0", 1 << 33)
    runtime.backends.cuda.backend.expect_fitting(manifest, gpu, weights + cache + work)
    smaller = {weights + cache // 2 + work: "export again with --max-context 64", weights: "use a smaller model or precision"}
    for free, advice in smaller.items():
        with pytest.raises(GpuMemoryError, match=rf"{free >> 20} MiB free of 8192, the engines need about \d+ .*250 tokens\) — {advice}"):
            runtime.backends.cuda.backend.expect_fitting(manifest, gpu, free)
    place.cuda.memory = weights
    with pytest.raises(GpuMemoryError) as raised:
        place.decoder()
    assert raised.value.exit_code == 1


def test_no_gpu_is_exit_code_3(engines: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    """On this machine as it is."""
    assert run_command(command, "resps-run", ["--engine-dir", str(engines[1]), "hello"]) == 3
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "no NVIDIA GPU can be used here" in err


def test_plans_need_a_gpu(place: Place) -> None:
    with pytest.raises(EngineDirError, match=r"holds TensorRT plans, which need a GPU — .*"):
        place.decoder(device="cpu")
    place.cuda.closed = True


def test_tuned_networks_are_engines_there_too(
    host: Decoder, engines: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real plans of them, and the host's decisions with other numbers of nodes: only those that the engines have profiles for."""
    directory = Path(shutil.copytree(engines[1], tmp_path / "tuned"))
    slow = dataclasses.replace(SLOW, actions=((1, 0, 0), (5, 3, 2), (16, 4, 4)))
    fast = dataclasses.replace(FAST, tree=(5, 3, 2), sizes=(1, 2, 5))
    both = dataclasses.replace(fast, slow=slow.slow, actions=((1, 0, 0), (2, 2, 2), (5, 3, 2)))
    trained = {"resps": slow, "ltd": fast, "resps+ltd": both}
    install(directory, load_manifest(directory), a_tuning(directory, trained, threads=1))
    tuning = load_manifest(directory).tuning
    assert tuning is not None
    assert {Path(name).suffix for name in tuning.files} == {".onnx", ".plan"}
    place = Place(directory, monkeypatch)
    with place.decoder(threads=1) as device:
        for name in (*trained, "cost-model"):
            for sampling in (SamplingParams(), SamplingParams(temperature=0.8, seed=4)):
                expected = host.generate(prompt_of(20), replace(sampling, max_new_tokens=60), policy=FixedPolicy(PLAIN)).tokens
                assert device.generate(prompt_of(20), replace(sampling, max_new_tokens=60), policy=name).tokens == expected, name
    ran = {engine.file.name for engine in place.trt.engines if engine.file.name.startswith("tuned") and engine.contexts}
    assert ran == {graph.file for graph in tuning.graphs.values()}
    assert tuning.graphs["ltd.depth"] == tuning.graphs["resps+ltd.depth"]  # one file, one plan
    assert place.cuda.leaked() == (0, 0)
