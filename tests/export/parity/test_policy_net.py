"""The check of a policy network's file accepts files from training and refuses everything else."""

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
from export.tuning.learning.nets import Mlp, mlp_graph
from runtime.manifest.graphs import Graph, Tensor
from tests.support.tunings import net

EXPECTED = Graph("net.onnx", None, (), {"x": Tensor("float32", (1, 12))}, {"logits": Tensor("float32", (1, 3))})


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_trained_networks_pass(tmp_path: Path, activation: str) -> None:
    onnx.save(mlp_graph(Mlp(net(12, 3).layers, activation)), tmp_path / "net.onnx")  # type: ignore[arg-type]
    check_network(tmp_path / "net.onnx", EXPECTED)


def other_tensors(_: onnx.ModelProto) -> Graph:
    return dataclasses.replace(EXPECTED, inputs={"x": Tensor("float32", (1, 13))})


def other_operator(model: onnx.ModelProto) -> Graph:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"
    return EXPECTED


def other_attribute(model: onnx.ModelProto) -> Graph:
    next(node for node in model.graph.node if node.op_type == "Gemm").attribute.append(onnx.helper.make_attribute("alpha", 2.0))
    return EXPECTED


def weights_elsewhere(model: onnx.ModelProto) -> Graph:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="/etc/passwd"))
    return EXPECTED


@pytest.mark.parametrize("change", [other_tensors, other_operator, other_attribute, weights_elsewhere])
def test_other_graphs_are_refused(tmp_path: Path, change: Callable[[onnx.ModelProto], Graph]) -> None:
    model = mlp_graph(net(12, 3))
    expected = change(model)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ParityError, match=r"net\.onnx is not a policy network: .* — tune again"):
        check_network(tmp_path / "net.onnx", expected)


def test_file_that_is_not_a_graph(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"not a graph")
    with pytest.raises(ParityError, match="is not a policy network"):
        check_network(tmp_path / "net.onnx", EXPECTED)


def test_other_results_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(mlp_graph(net(12, 3)), tmp_path / "net.onnx")
    run = onnxruntime.InferenceSession.run
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *arguments: [run(*arguments)[0] + np.float32(0.01)])
    with pytest.raises(ParityError, match="gives other logits in ONNX Runtime than in numpy — please report it"):
        check_network(tmp_path / "net.onnx", EXPECTED)
