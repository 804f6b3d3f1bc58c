"""A trained policy network: ONNX Runtime on its file against plain numpy on the weights in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx

from runtime.manifest.graphs import Graph

from ..errors import ParityError

AGREEMENT = 1e-4  # largest difference of a logit
STATES = 4  # random ones, on which both are compared

_OPERATORS: Mapping[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "Div": np.divide,
    "Gemm": lambda x, weight, bias: x @ weight.T + bias,
    "Mul": np.multiply,
    "ReduceMean": lambda x, axes: x.mean(tuple(axes.astype(int)), keepdims=True),
    "Relu": lambda x: np.maximum(x, 0),
    "Sqrt": np.sqrt,
    "Tanh": np.tanh,
}
_ATTRIBUTES = {"Gemm": {"transB": 1}}  # all others have none


def check_network(file: Path, graph: Graph) -> None:
    """``graph``: the network x [1, F] -> logits [1, A] as the manifest states it. Raises ParityError for another one, for one that is no
    multilayer perceptron with its weights inside the file, and where the results differ."""
    import onnxruntime

    try:
        model = onnx.load(file, load_external_data=False)
        onnx.checker.check_model(model)
        weights = {each.name: np.asarray(onnx.numpy_helper.to_array(each), np.float64) for each in model.graph.initializer}
    except Exception as error:  # protobuf and onnx raise whatever the damage leads them to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ParityError(f"{file} is no policy network: {reason} — tune again: resps-tune --engine-dir DIR") from None
    nodes = [(node.op_type, {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}) for node in model.graph.node]
    if unknown := [kind for kind, attributes in nodes if kind not in _OPERATORS or attributes != _ATTRIBUTES.get(kind, {})]:
        raise ParityError(f"{file} is no policy network: it has a node {unknown[0]} — tune again: resps-tune --engine-dir DIR")
    stated = {name: tuple(tensor.shape) for name, tensor in (*graph.inputs.items(), *graph.outputs.items())}
    found = {
        each.name: tuple(dim.dim_value for dim in each.type.tensor_type.shape.dim) for each in (*model.graph.input, *model.graph.output)
    }
    if found != stated or stated.keys() != {"x", "logits"}:
        raise ParityError(f"{file} is no policy network: its tensors are {found}, not {stated} — tune again: resps-tune --engine-dir DIR")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for x in np.random.default_rng(0).standard_normal((STATES, *found["x"])).astype(np.float32):
        values = {**weights, "x": x.astype(np.float64)}
        for node in model.graph.node:
            values[node.output[0]] = _OPERATORS[node.op_type](*(values[name] for name in node.input))
        if not np.allclose(session.run(["logits"], {"x": x})[0], values["logits"], atol=AGREEMENT, rtol=AGREEMENT):
            raise ParityError(f"{file} computes something else in ONNX Runtime than its weights say — please report it")
