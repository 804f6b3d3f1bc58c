"""A graph's twin that computes in float32 from the same stored weights.

ONNX Runtime has no bfloat16 arithmetic on a CPU, so what TensorRT computes in bfloat16 cannot be run by the check of an export. The twin
has the same nodes and the same stored weights; what the check does not see is the rounding of what is computed.
"""

from __future__ import annotations

import onnx

from ..graphs.builder import BFLOAT16, FLOAT

_SUFFIX = ".float32"


def float32_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a bfloat16 graph without bodies: weights are cast where they are used, inputs and outputs are float32."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    stored = {each.name for each in twin.graph.initializer if each.data_type == BFLOAT16}
    for node in twin.graph.node:
        for index, name in enumerate(node.input):
            if name in stored:
                node.input[index] = name + _SUFFIX
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == BFLOAT16:
                attribute.i = FLOAT
    nodes = list(twin.graph.node)
    del twin.graph.node[:]
    twin.graph.node.extend(onnx.helper.make_node("Cast", [name], [name + _SUFFIX], to=FLOAT) for name in sorted(stored))
    twin.graph.node.extend(nodes)
    for value in (*twin.graph.input, *twin.graph.output):
        if value.type.tensor_type.elem_type == BFLOAT16:
            value.type.tensor_type.elem_type = FLOAT
    return twin
