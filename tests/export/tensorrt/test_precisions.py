"""TensorRT's graphs equal the reference in every precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file

import export.parity.target
from export.checkpoints.fetch import open_checkpoint
from export.graphs.precision import TENSORRT_PRECISIONS
from export.graphs.weights import BLOCK, quantize_blocks, quantize_outputs
from export.parity.reference import reference_logits
from export.parity.target import TREE_PARENTS
from runtime.decoding.tree import Tree
from runtime.manifest.load import load_manifest
from tests.support.tensorrt_exports import TinyModels, export_to, unbuilt
from tests.support.tiny import reference, write_checkpoint

pytest.importorskip("tensorrt_rtx")


def rounded(precision: str, name: str, weight: np.ndarray) -> np.ndarray:
    """A weight after rounding to the engine's precision, as float32. In int4 the head has eight bits."""
    if weight.ndim < 2:
        return weight
    if precision == "bf16":
        return weight.astype(bfloat16).astype(np.float32)
    if precision == "int8" or name == "lm_head.weight":
        integers, scale = quantize_outputs(weight)
        return np.asarray(integers * scale.astype(np.float16).astype(np.float32)[:, None])
    values, scales = quantize_blocks(weight, 4)
    return values * scales.astype(np.float16).astype(np.float32).repeat(BLOCK, axis=1)


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-4), ("fp16", 0.05), ("bf16", 0.1), ("int8", 0.05), ("int4", 0.1)])
def test_every_precision_builds_and_equals_the_reference(tmp_path: Path, precision: str, most: float) -> None:
    """Logits are compared with float32 on the rounded weights, so only activations (in bf16 also rotary tables) are rounded. int8 is the
    form with rounded weights only; the other one and fp8 are in test_rounded_inputs.py."""
    path = tmp_path / "tiny"
    write_checkpoint(path, tied=False, num_hidden_layers=2)
    more = ["--precision", precision, "--tree-sizes", "2", "--lanes", "2", "--compute-capability", "8.9"]
    more += ["--no-rotation", "--rounding", "nearest"] if precision == "int8" else []
    directory = export_to(tmp_path / "e", TinyModels(tmp_path, None), *more, draft=False)
    assert directory.name == ("tiny-trt" if precision == "fp16" else f"tiny-trt-{precision}")
    manifest = load_manifest(directory)
    expected_type = {"fp32": "float32", "bf16": "bfloat16"}.get(precision, "float16")
    assert manifest.graphs["target"].inputs["past.1.value"].dtype == expected_type
    assert (directory / "target.plan").stat().st_size > 1 << 20

    if precision not in ("fp32", "fp16"):
        tensors = load_file(path / "model.safetensors")
        kept = ("model.embed_tokens.weight",) if precision != "bf16" else ()
        save_file(
            {name: weight if name in kept else rounded(precision, name, weight) for name, weight in tensors.items()},
            path / "model.safetensors",
            metadata={"format": "pt"},
        )
    checkpoint = open_checkpoint(path)
    tree = Tree.from_parents(list(range(3, 3 + len(TREE_PARENTS))), TREE_PARENTS)
    layers = range(checkpoint.arch.layers)
    expected = reference_logits(checkpoint, tree.tokens, tree.depth, tree.mask, layers)
    actual = export.parity.target.exported_logits(directory / "target.onnx", checkpoint, TENSORRT_PRECISIONS[precision], tree, layers)
    assert np.abs(actual - expected).max() < most
    assert np.abs(expected).max() > 3


def test_static_form_reads_the_first_slots_of_a_longer_cache(source: TinyModels, tmp_path: Path) -> None:
    """Two consecutive passes in ONNX Runtime with a cache longer than the slots that are read."""
    more = ["--precision", "fp32", "--tree-sizes", "2", "--compute-capability", "8.9"]
    directory = export_to(tmp_path / "e", source, *more, draft=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(directory / "target.onnx"), options, providers=["CPUExecutionProvider"])
    caches = {each.name: np.full(each.shape, np.nan, np.float32) for each in session.get_inputs() if each.name.startswith("past.")}
    for cache in caches.values():
        cache[:, :, :64] = 0  # what lies behind the slots that are read may be anything
    tokens, found = [5, 9, 200, 31, 7, 8, 100, 3, 12], []
    for start, end in ((0, 6), (6, 9)):
        count = end - start
        feeds = {"tokens": np.array([tokens[start:end]]), "depth": np.arange(count)[None], "tree_mask": np.tri(count, dtype=bool)}
        feeds |= {"past": np.array([start]), "slots": np.arange(64), "rows": np.arange(count)}
        _, logits, _, *presents = session.run(None, {**feeds, **caches})
        caches = dict(zip(caches, presents, strict=True))
        found.append(logits[0])
    np.testing.assert_allclose(np.concatenate(found), reference(source.model, tokens)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("precision", "draft_precision"), [("bf16", None), ("fp8", "fp8"), ("fp32", "int8"), ("int4", "bf16")])
def test_drafts_of_other_precisions_are_checked(source: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str,
                                                draft_precision: str | None) -> None:  # fmt: skip
    """Without building plans: the check runs both graphs, bf16 as its float32 copy."""

    monkeypatch.setattr("export.tensorrt.plans.build_plan", unbuilt)
    more = ["--precision", precision, *(["--draft-precision", draft_precision] if draft_precision else [])]
    manifest = load_manifest(export_to(tmp_path / "e", source, *more))
    assert manifest.draft is not None
    assert manifest.draft.precision == (draft_precision or "bf16")
    assert manifest.draft.check.same_argmax > 0.5
    assert not [name for name in manifest.files if name.startswith("check.")]
