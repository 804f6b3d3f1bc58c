"""The check of a large model on quantized checkpoints: it passes what is right, and finds integers of another matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.errors import ParityError
from export.graphs.precision import PRECISIONS, TENSORRT_PRECISIONS
from export.parity import target
from export.parity.stored import check_stored
from export.parity.target import check_target
from tests.export.parity.test_sampled_check import written
from tests.support.quantized_models import SCHEMES, is_linear, write_quantized
from tests.support.tiny import tiny_model

INTEGERS = [scheme for scheme in SCHEMES if not scheme.startswith("fp8")]
ONE, OTHER = "model.layers.2.mlp.gate_proj.weight", "model.layers.2.mlp.up_proj.weight"


class Swapped:
    """A checkpoint whose exporter reads two matrices for one another."""

    def __init__(self, true: HuggingFaceCheckpoint) -> None:
        self.true, self.path, self.arch = true, true.path, true.arch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.true, name)

    def form(self, name: str) -> Any:
        return self.true.form(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.true.shape(name)

    def integers(self, name: str, start: int, stop: int) -> Any:
        return self.true.integers({ONE: OTHER, OTHER: ONE}.get(name, name), start, stop)


def opened(directory: Path, scheme: str, layers: range = range(6)) -> HuggingFaceCheckpoint:
    """``layers``: those that are quantized."""
    model = tiny_model("llama-bias", tied=False)
    write_quantized(directory, model, scheme, lambda name: is_linear(name) and int(name.split(".")[2]) in layers)
    return HuggingFaceCheckpoint(directory)


@pytest.mark.parametrize("scheme", INTEGERS)
def test_what_is_right_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setattr(target, "FULL_CHECK", 0)
    checkpoint = opened(tmp_path, scheme)
    assert check_target(written(tmp_path, checkpoint, PRECISIONS["int4"]), checkpoint, PRECISIONS["int4"]).layers == 3


def test_all_layers_are_run_if_they_are_stored_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "FULL_CHECK", 0)
    checkpoint = opened(tmp_path, "awq", range(2, 6))
    assert check_target(written(tmp_path, checkpoint, PRECISIONS["int4"]), checkpoint, PRECISIONS["int4"]).layers is None


@pytest.mark.parametrize(("scheme", "precision"), [("gptq symmetric", "int4"), ("int8 groups", "int8"), ("fp8 rows", "fp8")])
def test_what_tensorrt_reads_passes(tmp_path: Path, scheme: str, precision: str) -> None:
    checkpoint = opened(tmp_path, scheme)
    check_stored(written(tmp_path, checkpoint, TENSORRT_PRECISIONS[precision], static=True), checkpoint)


@pytest.mark.parametrize("scheme", ["awq", "gptq desc_act", "int8 rows", "mixed"])
def test_integers_of_another_matrix_are_found(tmp_path: Path, scheme: str) -> None:
    checkpoint = opened(tmp_path, scheme)
    file = written(tmp_path, Swapped(checkpoint), PRECISIONS["int4"])
    with pytest.raises(ParityError, match=r"differ from the checkpoint's .*(gate|up)_proj"):
        check_stored(file, checkpoint)


def test_a_zero_point_of_another_group_is_found(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, "awq")
    file = written(tmp_path, checkpoint, PRECISIONS["int4"])
    content = np.fromfile(tmp_path / "target.data", np.uint8)
    (zero,) = (each for each in onnx.load(file, load_external_data=False).graph.initializer if each.name == "layers.3.down.zero")
    place = {entry.key: int(entry.value) for entry in zero.external_data if entry.key != "location"}
    part = content[place["offset"] : place["offset"] + place["length"]]
    part[:] = np.roll(part, 1)
    content.tofile(tmp_path / "target.data")
    with pytest.raises(ParityError, match=r"layers.3.mlp.down_proj"):
        check_stored(file, checkpoint)
