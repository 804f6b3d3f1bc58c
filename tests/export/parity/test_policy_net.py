"""A policy's network is checked against its own weights, and anything else in its place is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from export.errors import ParityError
from export.parity.policy_net import check_network
from export.tuning.learning.nets import Mlp, graph
from runtime.manifest.graphs import Graph, Tensor
from tests.support.tunings import net

STATED = Graph("net.onnx", None, (), {"x": Tensor("float32", (1, 12))}, {"logits": Tensor("float32", (1, 3))})


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("normalise", [True, False])
def test_every_network_that_is_trained_passes(tmp_path: Path, activation: str, normalise: bool) -> None:
    onnx.save(graph(Mlp(net(12, 3).layers, activation, normalise)), tmp_path / "net.onnx")  # type: ignore[arg-type]
    check_network(tmp_path / "net.onnx", STATED)


def other_tensors(_: onnx.ModelProto) -> Graph:
    return dataclasses.replace(STATED, inputs={"x": Tensor("float32", (1, 13))})


def other_operator(model: onnx.ModelProto) -> Graph:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"
    return STATED


def other_attribute(model: onnx.ModelProto) -> Graph:
    next(node for node in model.graph.node if node.op_type == "Gemm").attribute.append(onnx.helper.make_attribute("alpha", 2.0))
    return STATED


def weights_elsewhere(model: onnx.ModelProto) -> Graph:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="/etc/passwd"))
    return STATED


@pytest.mark.parametrize("change", [other_tensors, other_operator, other_attribute, weights_elsewhere])
def test_what_is_no_policy_network(tmp_path: Path, change: Callable[[onnx.ModelProto], Graph]) -> None:
    model = graph(net(12, 3))
    stated = change(model)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ParityError, match=r"net\.onnx is no policy network: .* — tune again"):
        check_network(tmp_path / "net.onnx", stated)


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ParityError, match="is no policy network"):
        check_network(tmp_path / "net.onnx", STATED)


def test_another_result_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(graph(net(12, 3)), tmp_path / "net.onnx")
    run = onnxruntime.InferenceSession.run
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *given: [run(*given)[0] + np.float32(0.01)])
    with pytest.raises(ParityError, match="computes something else in ONNX Runtime than its weights say — please report it"):
        check_network(tmp_path / "net.onnx", STATED)
