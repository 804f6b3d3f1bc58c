"""Checks a trained policy network's file: ONNX Runtime's results against plain numpy on the weights in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx

from runtime.manifest.graphs import Graph

from ..errors import ParityError

MAX_LOGIT_DIFF = 1e-4
NUM_STATES = 4  # random inputs that both are compared on

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
_ATTRIBUTES = {"Gemm": {"transB": 1}}  # the other operators have none


def check_network(file: Path, graph: Graph) -> None:
    """Check that ``file`` is the network x [1, F] -> logits [1, A] that the manifest describes in ``graph``.

    Raises ParityError if its tensors differ from ``graph``, if it is not a multilayer perceptron with its weights inside the file, or if
    ONNX Runtime's results differ from numpy's.
    """
    import onnxruntime

    try:
        model = onnx.load(file, load_external_data=False)
        onnx.checker.check_model(model)
        weights = {tensor.name: np.asarray(onnx.numpy_helper.to_array(tensor), np.float64) for tensor in model.graph.initializer}
    except Exception as error:  # on a damaged file protobuf and onnx may raise any type
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ParityError(f"{file} is not a policy network: {reason} — tune again: resps-tune --engine-dir DIR") from None
    for node in model.graph.node:
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type not in _OPERATORS or attributes != _ATTRIBUTES.get(node.op_type, {}):
            raise ParityError(f"{file} is not a policy network: it has a node {node.op_type} — tune again: resps-tune --engine-dir DIR")
    expected = {name: tuple(tensor.shape) for name, tensor in (*graph.inputs.items(), *graph.outputs.items())}
    values = (*model.graph.input, *model.graph.output)
    shapes = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}
    if shapes != expected or expected.keys() != {"x", "logits"}:
        problem = f"its tensors are {shapes}, not {expected}"
        raise ParityError(f"{file} is not a policy network: {problem} — tune again: resps-tune --engine-dir DIR")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    for x in np.random.default_rng(0).standard_normal((NUM_STATES, *shapes["x"])).astype(np.float32):
        results = {**weights, "x": x.astype(np.float64)}
        for node in model.graph.node:
            results[node.output[0]] = _OPERATORS[node.op_type](*(results[name] for name in node.input))
        if not np.allclose(session.run(["logits"], {"x": x})[0], results["logits"], atol=MAX_LOGIT_DIFF, rtol=MAX_LOGIT_DIFF):
            raise ParityError(f"{file} gives other logits in ONNX Runtime than in numpy — please report it")
