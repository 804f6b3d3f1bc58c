"""What the TensorRT backend refuses: plans for another machine or damaged ones, trees without a profile, too little memory."""

from __future__ import annotations

from pathlib import Path

import pytest

import runtime.backends.cuda.backend
import runtime.backends.cuda.tensorrt
import runtime.backends.cuda.tensorrt_module
import runtime.models
from policy import FixedPolicy, TreeSpec
from runtime import Decoder, EngineDirError
from runtime.backends.cuda.driver import Gpu
from runtime.cli import command
from runtime.console import run_command
from runtime.errors import GpuMemoryError
from runtime.manifest.load import load_manifest
from tests.support.eagle_engines import prompt_of
from tests.support.gpu.emulated_tensorrt import Change, EmulatedMachine, altered

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
