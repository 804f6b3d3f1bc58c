"""int8 exports for the CPU: rotated unless told otherwise, in the form that this processor adds exactly."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import export.build
import runtime.backends.cpu.backend
from runtime import Decoder, EngineDirError
from runtime.backends.cpu.sums import adds_pairs_exactly
from runtime.manifest.load import load_manifest
from runtime.manifest.schema import Check
from tests.support.exporting import Run


def test_int8_is_rotated_unless_told_otherwise(run: Run, engines: Path) -> None:
    assert run("--precision", "int8").code == 0
    assert run("--precision", "int8", "--no-rotation", "--rounding", "nearest", "--name", "plain").code == 0
    turned, plain = load_manifest(engines / "tiny-int8"), load_manifest(engines / "plain")
    assert (turned.rotated, plain.rotated, plain.exact_pairs) == (True, False, False)
    assert "--no-rotation --rounding nearest" in plain.rebuild
    assert turned.engine_id != plain.engine_id
    assert "residual stream rotated, with error feedback" in run("--precision", "int8", "--dry-run").out
    assert (
        "residual stream not rotated, to the nearest"
        in run("--precision", "int8", "--dry-run", "--no-rotation", "--rounding", "nearest", "--name", "x").out
    )


@pytest.mark.parametrize("exact", [True, False])
def test_one_digit_takes_the_form_that_this_processor_adds_exactly(
    run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    monkeypatch.setattr(export.build, "adds_pairs_exactly", lambda: exact)
    if exact and not adds_pairs_exactly():  # the check would find that the sums are wrong here
        monkeypatch.setattr(export.build, "check_target", lambda *_: Check(8, 0.0, 0.0, 1.0))
        monkeypatch.setattr(export.build, "check_target_lanes", lambda *_: None)
    assert run("--precision", "int8").code == 0
    graph = onnx.load(engines / "tiny-int8" / "target.onnx", load_external_data=False).graph
    types = {weight.name: weight.data_type for weight in graph.initializer if weight.name.endswith(".quantized")}
    wide = {name for name, kind in types.items() if kind == onnx.TensorProto.UINT8}
    assert wide == (set() if exact else {name for name in types if "embed" not in name})
    assert load_manifest(engines / "tiny-int8").exact_pairs == exact
    if exact:
        monkeypatch.setattr(runtime.backends.cpu.backend, "adds_pairs_exactly", lambda: False)
        with pytest.raises(EngineDirError, match="exported on another kind of processor"):
            Decoder(engines / "tiny-int8")
