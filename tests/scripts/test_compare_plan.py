"""scripts/gpu/compare_plan.py as far as it goes without a GPU: polygraphy runs and compares our ONNX files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scripts.gpu.compare_plan
from export.tensorrt.gpu import find_gpu
from runtime import Decoder
from runtime.console import run_command
from runtime.decoding.tree import Tree
from runtime.manifest.load import load_manifest
from scripts.gpu.compare_plan import compare, main, onnx_runner, pass_inputs
from tests.support.eagle_engines import export

pytest.importorskip("polygraphy")


@pytest.fixture(scope="module")
def int8(echo_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources, more = echo_engine.parent, ("--precision", "int8", "--no-rotation", "--max-context", "250")  # the same features
    return export(sources / "target", sources / "draft", tmp_path_factory.mktemp("int8"), *more)


@pytest.fixture(scope="module")
def plans(echo_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real plans by TensorRT-RTX, which builds without a GPU."""
    pytest.importorskip("tensorrt_rtx")
    more = ("--backend", "tensorrt", "--precision", "fp32", "--max-context", "64", "--tree-sizes", "1,4")
    sources = echo_engine.parent
    return export(sources / "target", sources / "draft", tmp_path_factory.mktemp("plans"), *more)


@pytest.mark.parametrize("sizes", [(1, 64, 1), (8, 64, 8), (16, 128, 1), (33, 192, 33)], ids=str)
def test_fused_graph_computes_the_same(echo_engine: Path, sizes: tuple[int, int, int]) -> None:
    manifest = load_manifest(echo_engine)
    graph = manifest.graphs["target"]
    inputs = pass_inputs(manifest, dict(zip(("n", "span", "r"), sizes, strict=True)))
    result = compare(onnx_runner(echo_engine / graph.file), onnx_runner(echo_engine / str(graph.fused)), inputs, 1e-5)
    assert result["passed"] is True
    assert 0 < result["logits"] < 1e-5  # other kernels, so not bit for bit
    assert result["same_argmax"] == 1.0


def test_runtime_has_the_logits_of_polygraphys_runner(echo_engine: Path) -> None:
    manifest = load_manifest(echo_engine)
    inputs = pass_inputs(manifest, {"n": 9, "span": 9, "r": 9})  # as many slots as rows: the cache is empty
    assert inputs["past"] == [0]
    ancestors = inputs["tree_mask"] & ~np.eye(9, dtype=bool)
    parents = [int(np.flatnonzero(row)[-1]) if row.any() else -1 for row in ancestors]
    assert len(set(parents)) < 9  # branches
    with onnx_runner(echo_engine / manifest.graphs["target"].file) as runner:
        expected = runner.infer(inputs)["logits"][0]
    with Decoder(echo_engine, threads=1) as decoder:
        target = decoder.models.target
        target.cache.truncate(0)
        actual = target.verify(Tree.from_parents(inputs["tokens"][0].tolist(), parents)).logits
    assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()


def test_differences_are_relative_to_the_outputs_and_tolerances_decide(echo_engine: Path, int8: Path) -> None:
    manifest, file = load_manifest(echo_engine), load_manifest(int8).graphs["target"].file
    inputs = pass_inputs(manifest, {"n": 8, "span": 64, "r": 8})

    def runners() -> tuple[Any, Any]:
        return onnx_runner(echo_engine / "target.onnx"), onnx_runner(int8 / file)

    strict, loose = (compare(*runners(), inputs, tolerance) for tolerance in (1e-3, 0.5))
    assert (strict.pop("passed"), loose.pop("passed")) == (False, True)
    assert strict == loose
    one, other = runners()
    with one, other:
        exact, rounded = one.infer(inputs)["logits"], other.infer(inputs)["logits"]
    assert strict["logits"] == pytest.approx(np.abs(exact - rounded).max() / np.abs(exact).max(), rel=1e-5)
    assert strict["same_argmax"] == (exact.argmax(-1) == rounded.argmax(-1)).mean()


@pytest.mark.trt
def test_inputs_are_those_of_a_pass(plans: Path) -> None:
    manifest = load_manifest(plans)
    inputs = pass_inputs(manifest, {"n": 4, "span": 128, "r": 1})
    assert set(inputs) == set(manifest.graphs["target"].inputs)
    assert 0 <= inputs["tokens"].min() <= inputs["tokens"].max() < manifest.shape.vocab
    assert (inputs["past"].tolist(), inputs["rows"].tolist()) == ([100], [3])
    assert inputs["past.0.key"].shape == (1, 2, 128, 16)
    assert np.abs(inputs["past.0.key"][:, :, :100]).min() > 0 == np.abs(inputs["past.0.key"][:, :, 100:]).max()


@pytest.mark.trt
@pytest.mark.parametrize("off", [0.0, 0.1], ids=["right", "wrong"])
def test_every_profile_is_compared(plans: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], off: float) -> None:
    """With the ONNX file in place of the plan, which needs a GPU."""
    profiles: list[int] = []

    def runner(directory: Path, manifest: Any, profile: int) -> Any:
        profiles.append(profile)
        fake = onnx_runner(directory / "target.onnx")
        infer = fake.infer_impl
        fake.infer_impl = lambda feeds: {name: values + off if name == "logits" else values for name, values in infer(feeds).items()}
        fake.name = "plan"
        return fake

    monkeypatch.setattr(scripts.gpu.compare_plan, "plan_runner", runner)
    assert run_command(main, "compare_plan", ["--engine-dir", str(plans)]) == (1 if off else 0)
    report = json.loads(capfd.readouterr().out)
    assert profiles == [0, 1, 2]
    assert {name for name, value in report.items() if isinstance(value, dict)} == {"1 rows", "4 rows", "128 rows"}
    for result in (report["1 rows"], report["4 rows"], report["128 rows"]):
        assert result["passed"] is not bool(off)
        assert (result["logits"] > 0) == bool(off)
        assert (result["cache"], result["same_argmax"]) == (0.0, 1.0)


@pytest.mark.trt
@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_the_error_says_what_is_missing(plans: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, "compare_plan", ["--engine-dir", str(plans)]) == 3
    out, err = capfd.readouterr()
    assert out == ""
    assert "cudaError" in err  # the message is TensorRT-RTX's own: the right module was loaded and given the plan
    assert err.splitlines()[-1].startswith("compare_plan: polygraphy cannot run target.plan: ")
    assert "NVIDIA GPU" in err.splitlines()[-1]


def test_directory_without_plans_is_refused(echo_engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, "compare_plan", ["--engine-dir", str(echo_engine)]) == 3
    assert "has no TensorRT plans — export with --backend tensorrt" in capfd.readouterr().err
