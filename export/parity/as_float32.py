"""Copies a graph of 16-bit numbers into one that computes in float32.

ONNX Runtime has no bfloat16 arithmetic on a CPU. The copy has the same nodes and the same stored weights, so a check of it covers
everything but the rounding of intermediate results to 16 bits. What the graph itself rounds to eight bits, the copy rounds too.
"""

from __future__ import annotations

import onnx

from ..graphs.builder import BFLOAT16, FLOAT

_SUFFIX = ".float32"


def float32_copy(model: onnx.ModelProto, kind: int = BFLOAT16) -> onnx.ModelProto:
    """A copy of a graph in which all that has the ONNX type ``kind`` is float32: stored weights are cast before use, inputs and outputs are
    float32. The graph must have no subgraphs (nodes such as If or Loop)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {initializer.name for initializer in copy.graph.initializer if initializer.data_type == kind}
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            if name in weights:
                node.input[index] = name + _SUFFIX
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == kind:
                attribute.i = FLOAT
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    copy.graph.node.extend(onnx.helper.make_node("Cast", [name], [name + _SUFFIX], to=FLOAT) for name in sorted(weights))
    copy.graph.node.extend(nodes)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type == kind:
            value.type.tensor_type.elem_type = FLOAT
    return copy
