"""int8 and fp8 for TensorRT: inputs of products have eight bits too. The exported graph is compared with numpy, and plans are built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest

import export.parity.reference
import export.parity.target
from export.checkpoints.fetch import open_checkpoint
from export.checkpoints.rope import Rope
from export.checkpoints.safetensors import Checkpoint
from export.graphs.builder import FLOAT8, FLOAT16, INT8
from export.graphs.precision import TENSORRT_PRECISIONS
from export.graphs.weights import quantize_outputs, quantize_rows
from export.parity.as_float32 import float32_copy
from export.parity.reference import reference_logits
from export.parity.target import TREE_PARENTS, accuracy_option, exported_logits
from export.rotation.target import RotatedTarget
from runtime.decoding.tree import Tree
from runtime.manifest.load import load_manifest
from tests.export.graphs.test_row_products import rounded
from tests.support.tensorrt_exports import TinyModels, expect_caches_updated_in_place, export_to, unbuilt
from tests.support.tiny import write_checkpoint

pytest.importorskip("tensorrt_rtx")
KINDS = {"int8": INT8, "fp8": FLOAT8}
PLAIN = "lm_head"  # the product whose inputs are not rounded


def half(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(np.float32)


@dataclass(frozen=True)
class HalfRope:
    """Rotary tables in float16."""

    plain: Rope

    def tables(self, width: int, positions: int) -> tuple[np.ndarray, np.ndarray]:
        cos, sin = self.plain.tables(width, positions)
        return half(cos), half(sin)


@dataclass(frozen=True)
class RoundedCheckpoint:
    """A checkpoint's numbers as the graph of a precision stores them."""

    plain: Checkpoint
    precision: str

    @property
    def arch(self) -> Any:
        return replace(self.plain.arch, rope=cast("Any", HalfRope(self.plain.arch.rope)))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.plain.shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        weight = self.plain.read(name, start, stop)
        if weight.ndim < 2 or "embed" in name:
            return half(weight)
        values, scale = quantize_rows(weight) if self.precision == "fp8" else quantize_outputs(weight)
        scale = half(scale) if name.split(".")[-2] == PLAIN else scale.astype(np.float32)
        return np.asarray(values.astype(np.float32) * scale[:, None])


def numpy_logits(checkpoint: Any, tree: Tree, precision: str, monkeypatch: pytest.MonkeyPatch, inputs: bool) -> np.ndarray:
    """Of the rounded model. ``inputs``: whether those of products are rounded, too."""
    linear = export.parity.reference.linear

    def of_rounded(weights: Any, name: str, x: np.ndarray, bias: bool = False) -> np.ndarray:
        plain = not inputs or name.split(".")[-1] == PLAIN
        return linear(weights, name, x if plain else rounded(x, KINDS[precision]).astype(np.float32), bias)

    with monkeypatch.context() as patch:
        patch.setattr(export.parity.reference, "linear", of_rounded)
        return reference_logits(RoundedCheckpoint(checkpoint, precision), tree.tokens, tree.depth, tree.mask, range(checkpoint.arch.layers))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # one has biases
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_plans_build_and_the_graph_rounds_as_numpy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, architecture: str
) -> None:
    path = tmp_path / "tiny"
    write_checkpoint(path, architecture, tied=False, num_hidden_layers=2)
    more = ["--precision", precision, "--tree-sizes", "2", "--lanes", "2", "--compute-capability", "8.9"]
    directory = export_to(tmp_path / "e", TinyModels(tmp_path, None), *more, *_nearest(precision), draft=False)
    manifest = load_manifest(directory)
    assert (manifest.rotated, manifest.exact_pairs) == (precision == "int8", False)
    assert min((directory / plan).stat().st_size for plan in ("target.plan", "target_lanes.plan")) > 1 << 20
    for kind in ("", ".lanes"):
        graph = onnx.load(directory / f"target{kind}.onnx", load_external_data=False).graph
        assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 2 * 4

    opened = open_checkpoint(path)
    checkpoint = RotatedTarget(opened) if precision == "int8" else opened
    tree = Tree.from_parents(list(range(3, 3 + len(TREE_PARENTS))), TREE_PARENTS)
    expected, unrounded = (numpy_logits(checkpoint, tree, precision, monkeypatch, inputs) for inputs in (True, False))
    twin = directory / "twin.onnx"
    onnx.save(float32_copy(onnx.load(directory / "target.onnx", load_external_data=False), FLOAT16), twin)
    as_it_stands = accuracy_option(np.dtype(np.float16))
    monkeypatch.setattr(export.parity.target, "accuracy_option", lambda compute: as_it_stands)
    in_float32, in_float16 = (
        exported_logits(file, checkpoint, TENSORRT_PRECISIONS[precision], tree, range(2)) for file in (twin, directory / "target.onnx")
    )
    assert np.abs(in_float32 - expected).max() < 1e-4
    assert np.abs(in_float16 - expected).max() < 0.6  # the last bits of float16 decide some of the roundings
    assert np.abs(unrounded - expected).max() > 0.02
    assert np.abs(expected).max() > 3


def _nearest(precision: str) -> list[str]:
    return ["--rounding", "nearest"] if precision == "int8" else []


def test_int8_is_rotated_unless_told_otherwise(source: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not rotated, inputs keep their type; with the draft's check in both."""
    monkeypatch.setattr("export.tensorrt.plans.build_plan", unbuilt)
    turned = load_manifest(export_to(tmp_path / "a", source, "--precision", "int8"))
    directory = export_to(tmp_path / "b", source, "--precision", "int8", "--no-rotation")
    plain = load_manifest(directory)
    assert (turned.rotated, plain.rotated) == (True, False)
    assert turned.draft is not None
    assert turned.draft.check.same_argmax > 0.5
    assert "--no-rotation" in plain.rebuild
    graph = onnx.load(directory / "target.onnx", load_external_data=False).graph
    assert not [node for node in graph.node if node.op_type == "QuantizeLinear"]


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_caches_stay_in_place(source: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr("export.tensorrt.plans.build_plan", unbuilt)
    directory = export_to(tmp_path / "e", source, "--precision", precision, "--lanes", "2")
    expect_caches_updated_in_place(directory, source.model.config.num_hidden_layers)
    expect_caches_updated_in_place(directory, source.model.config.num_hidden_layers, ".lanes")
