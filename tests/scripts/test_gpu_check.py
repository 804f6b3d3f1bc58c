"""scripts/gpu_check.py on an emulated GPU: its times mean nothing there, but every line of it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import runtime.backends.cuda.backend
import runtime.backends.cuda.tensorrt_module
import scripts.gpu.demo
import scripts.gpu.environment
import scripts.gpu.lanes
import scripts.gpu.large
from scripts.gpu.random_model import RandomShape, write_model
from scripts.gpu_check import command
from tests.support.eagle_engines import prompt_of
from tests.support.gpu.both_engines import make_engines
from tests.support.gpu.emulated_gpu import EmulatedCuda
from tests.support.gpu.emulated_tensorrt import EmulatedRtx
from tests.support.tensorrt_exports import unbuilt

TINY = RandomShape(hidden=64, mlp=96, heads=4, kv_heads=2, head_dim=16, vocab=512, draft_vocab=96)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Cuda is emulated. Its plans are those of the directory that was opened last."""
    opened: dict[str, Any] = {}

    def backend(directory: Path, *arguments: Any, **options: Any) -> Any:
        opened["directory"] = directory
        return real(directory, *arguments, **options)

    def cuda() -> EmulatedCuda:
        opened["cuda"] = EmulatedCuda()
        return opened["cuda"]

    real = runtime.backends.cuda.backend.CudaBackend
    monkeypatch.setattr(runtime.backends.cuda.backend, "CudaBackend", backend)
    for module in (runtime.backends.cuda.backend, scripts.gpu.large, scripts.gpu.demo, scripts.gpu.lanes):
        monkeypatch.setattr(module, "Cuda", cuda)
    monkeypatch.setattr(scripts.gpu.large, "bandwidth", lambda cuda: 3.0)
    monkeypatch.setattr(scripts.gpu.large, "TIMES", 2)
    load = runtime.backends.cuda.tensorrt_module.load  # the real TensorRT-RTX builds the plans; it calls load without a name
    monkeypatch.setattr(
        runtime.backends.cuda.tensorrt_module,
        "load",
        lambda name=None: EmulatedRtx(opened["directory"], opened["cuda"]) if name else load(),
    )
    logger = runtime.backends.cuda.tensorrt_module.logger
    monkeypatch.setattr(
        runtime.backends.cuda.tensorrt_module, "logger", lambda module: None if isinstance(module, EmulatedRtx) else logger(module)
    )


@pytest.mark.trt
def test_large_part_measures_passes_drafts_and_cycles(gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts.gpu.large, "CONTEXT", 420)
    monkeypatch.setattr(scripts.gpu.large, "PAST", 64)
    report = scripts.gpu.large.large(tmp_path, layers=4, precision="fp16", shape=TINY)
    assert set(report["pass_ms"]) == set(report["pass_wall_ms"]) == {"1", "2", "4", "8", "16", "32", "64"}
    assert {"plain_over_floor", "pass_32_over_plain", "profile_switch_ms", "prefill_chunk_ms"} <= report.keys()
    assert report["drafting"]["8"]["tree_ms"].keys() == {"1", "2", "4", "8"}
    assert set(report["cycles"]) == {"1,0,0", "8,4,4", "16,5,8", "32,7,8", "64,8,10"}


@pytest.mark.trt
def test_lanes_part_compares_answers_and_measures(gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.tensorrt.plans.build_plan", unbuilt)
    monkeypatch.setattr(scripts.gpu.lanes, "PROMPTS", [prompt_of(length) for length in (3, 9, 20)])
    monkeypatch.setattr(scripts.gpu.lanes, "NEW_TOKENS", 8)
    _, directory = make_engines(tmp_path, "--lanes", "2")
    report = scripts.gpu.lanes.measure_lanes(directory, 2)
    assert report["answers_equal_to_one_lane"] == report["answers_equal_to_plain_alone"] == "3 of 3"
    assert report["sampled_answers_equal_to_alone"] == "3 of 3"
    assert report["tokens_per_second_to_one_lane"].keys() == {1, 2}


def test_random_model_can_be_exported(tmp_path: Path) -> None:
    from export.checkpoints.draft_checkpoint import open_draft
    from export.checkpoints.hugging_face import HuggingFaceCheckpoint

    write_model(tmp_path, TINY, layers=6)
    target = HuggingFaceCheckpoint(tmp_path / "target")
    assert (target.arch.layers, target.arch.vocab) == (6, 512)
    assert open_draft(tmp_path / "draft", target).tokens.tolist() == list(range(0, 4 * 96, 4))


def test_without_a_gpu_every_part_reports_its_error_and_the_command_succeeds(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["--work", str(tmp_path), "--only", "environment,rtx"])
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert "no NVIDIA GPU can be used here" in report["environment"]["error"]
    assert report["rtx"]["tensorrt_rtx for 8.9,12.0"]["runs"] is False
    assert "no NVIDIA GPU" in report["rtx"]["tensorrt_rtx for 8.9,12.0"]["error"]


def test_unknown_part_is_a_usage_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["--work", str(tmp_path), "--only", "weather"])
    assert done.exit_code == 2
    assert "weather" in done.stderr
