"""Copies a bfloat16 graph into one that computes in float32, so that ONNX Runtime can check it on a CPU.

ONNX Runtime has no bfloat16 arithmetic on a CPU. The copy has the same nodes and the same stored weights, so the check covers everything
but the rounding of intermediate results.
"""

from __future__ import annotations

import onnx

from ..graphs.builder import BFLOAT16, FLOAT

_SUFFIX = ".float32"


def float32_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 copy of a bfloat16 graph: stored weights are cast before use, inputs and outputs are float32. The graph must have no
    subgraphs (nodes such as If or Loop)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {initializer.name for initializer in copy.graph.initializer if initializer.data_type == BFLOAT16}
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            if name in weights:
                node.input[index] = name + _SUFFIX
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == BFLOAT16:
                attribute.i = FLOAT
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    copy.graph.node.extend(onnx.helper.make_node("Cast", [name], [name + _SUFFIX], to=FLOAT) for name in sorted(weights))
    copy.graph.node.extend(nodes)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type == BFLOAT16:
            value.type.tensor_type.elem_type = FLOAT
    return copy
