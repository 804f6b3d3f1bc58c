"""A thin layer over onnx.helper: every call appends one node and returns the name of its output."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 24
IR_VERSION = 11


class GraphBuilder:
    """Collects the nodes of one graph. Nodes are of standard opset 24, which both ONNX Runtime and TensorRT read. Only graphs for ONNX
    Runtime on a CPU may use nodes of another domain."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, name: str, dtype: int, shape: Sequence[int | str]) -> None:
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def initializer(self, tensor: onnx.TensorProto) -> str:
        """Register a tensor, usually one with its data in the external weight file."""
        self._initializers[tensor.name] = tensor
        return str(tensor.name)

    def tensor(self, name: str) -> onnx.TensorProto:
        """A registered initializer."""
        return self._initializers[name]

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        """A small constant inside the graph. Equal constants share one initializer."""
        array = np.asarray(value, dtype)
        digest = blake2b(array.tobytes(), digest_size=16).hexdigest()  # TensorRT bounds the length of names
        name = f"const_{array.dtype}_{'x'.join(map(str, array.shape))}_{digest}"
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def op(self, op_type: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Append a node with one output and return its name."""
        return self.ops(op_type, *inputs, outs=(out,), **attributes)[0]

    def ops(self, op_type: str, *inputs: str, outs: Sequence[str | None], **attributes: Any) -> list[str]:
        """Append a node with several outputs; ``None`` asks for a generated name."""
        index = len(self._nodes)
        names = [name or f"{op_type}_{index}_{i}" for i, name in enumerate(outs)]
        self._nodes.append(helper.make_node(op_type, list(inputs), names, name=f"{op_type}_{index}", **attributes))
        return names

    def __len__(self) -> int:
        return len(self._nodes)

    def graph(self) -> onnx.GraphProto:
        return helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, list(self._initializers.values()))

    def model(self, producer: str) -> onnx.ModelProto:
        opsets = [helper.make_opsetid(domain, 1 if domain else OPSET) for domain in sorted({"", *(node.domain for node in self._nodes)})]
        return helper.make_model(self.graph(), opset_imports=opsets, ir_version=IR_VERSION, producer_name=producer)


FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
UINT8, INT8, INT4, INT32, INT64 = TensorProto.UINT8, TensorProto.INT8, TensorProto.INT4, TensorProto.INT32, TensorProto.INT64
FLOAT8 = TensorProto.FLOAT8E4M3FN
BOOL = TensorProto.BOOL
