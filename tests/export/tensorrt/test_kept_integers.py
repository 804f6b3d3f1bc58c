"""Values of quantized checkpoints in TensorRT's graphs, where these can hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.graphs.weights import BLOCK
from runtime.manifest.load import load_manifest
from tests.support.quantized_models import write_quantized
from tests.support.tensorrt_exports import TinyModels, export_to, unbuilt
from tests.support.tiny import tiny_model

pytest.importorskip("tensorrt_rtx")
LAYER = "model.layers.1.mlp.down_proj.weight"


def stored_down(directory: Path) -> np.ndarray:
    """[outputs, inputs] of one matrix in float64, by the definition of DequantizeLinear."""
    model = onnx.load(directory / "target.onnx")
    arrays = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer if each.name.startswith("layers.1.down.")}
    values, scales = (arrays[f"layers.1.down.{part}"].astype(np.float64) for part in ("quantized", "scale"))
    if scales.ndim == 1:  # float8 is [outputs, inputs]
        return np.asarray((values if values.shape[0] == len(scales) else values.T) * scales[:, None])
    return np.asarray((values * np.repeat(scales, BLOCK, axis=0)).T)


@pytest.mark.parametrize(
    ("scheme", "precision"),
    [("fp8 rows", "fp8"), ("gptq symmetric", "int4"), ("int4 groups", "int8"), ("int8 rows", "int8"), ("int8 groups", "int4")],
)
def test_values_are_kept_and_plans_are_built(tmp_path: Path, scheme: str, precision: str, capfd: pytest.CaptureFixture[str]) -> None:
    """But for scales that float16 does not hold: TensorRT's graphs compute in it."""
    model = tiny_model("llama", tied=False, num_hidden_layers=2)
    write_quantized(tmp_path / "tiny", model, scheme)
    more = ["--precision", precision, "--tree-sizes", "2", "--lanes", "2", "--compute-capability", "8.9"]
    directory = export_to(tmp_path / "e", TinyModels(tmp_path, None), *more, draft=False)
    assert "14 matrices" in (told := capfd.readouterr().err)
    assert "kept as they are" in told
    assert (directory / "target.plan").stat().st_size > 1 << 18
    weight = dict(model.named_parameters())[LAYER].detach().numpy()
    error = np.abs(stored_down(directory) - weight)
    assert (error <= 2.0**-11 * np.abs(weight) * 1.001).all()
    assert load_manifest(directory).check.mean_kl < 0.01


@pytest.mark.parametrize(
    ("scheme", "precision", "reason"),
    [
        ("awq", "int4", "no zero points"),
        ("fp8 blocks", "fp8", "one scale a row"),
        ("fp8 rows", "int8", "has fp8"),
        ("awq", "fp8", "has int4"),
    ],
)
def test_what_is_rounded_again_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, precision: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("export.tensorrt.plans.build_plan", unbuilt)
    write_quantized(tmp_path / "tiny", tiny_model("llama", tied=False, num_hidden_layers=2), scheme)
    export_to(tmp_path / "e", TinyModels(tmp_path, None), "--precision", precision, draft=False)
    assert f"rounded again, because TensorRT's products have {reason}" in (told := capfd.readouterr().err) or f"checkpoint {reason}" in told
