"""The export's check of the graphs with lanes: a graph that computes something else is not installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import export.build
import export.draft_build
from tests.support.draft_cases import DraftCase
from tests.support.exporting import Run, names_in

Change = Callable[[onnx.NodeProto], None]


def other_scale(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "FusedMatMul" and attribute.name == "alpha":
            attribute.f = 1.0


def not_masked(node: onnx.NodeProto) -> None:
    """Rows attend to all slots of their pages."""
    if node.op_type == "Where" and node.input[0] == "attend":
        node.input[2] = node.input[1]


def changed(original: Callable[[Any], onnx.ModelProto], change: Change) -> Callable[[Any], onnx.ModelProto]:
    def wrong(writer: Any) -> onnx.ModelProto:
        model = original(writer)
        for node in model.graph.node:
            change(node)
        return model

    return wrong


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("change", [other_scale, not_masked])
def test_wrong_target_with_lanes_is_refused(
    run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch, change: Change, precision: str
) -> None:
    monkeypatch.setattr(export.build, "target_lanes", changed(export.build.target_lanes, change))
    ended = run("--precision", precision)
    assert (ended.code, names_in(engines)) == (1, set())
    assert "the exported target with lanes differs from the graph for one lane: max |logit difference|" in ended.complaint


@pytest.mark.parametrize("change", [other_scale, not_masked])
def test_wrong_draft_with_lanes_is_refused(case: DraftCase, monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    case.write()
    monkeypatch.setattr(export.draft_build, "draft_lanes", changed(export.draft_build.draft_lanes, change))
    ended = case.run("--draft-precision", "fp32")
    case.expect_refused(ended, "the exported draft with lanes differs from the graph for one lane: max |logit difference|")
