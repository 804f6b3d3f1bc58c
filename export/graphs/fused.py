"""The target's graph once more for ONNX Runtime's CPU, with its own operator for all between the joined product and attention's result.

Standard operators take ten nodes a layer there; GroupQueryAttention takes queries, keys and values as they come, turns them, writes the
cache in place and attends: docs/lab/passes.md, "Attention, new over old". Inputs, outputs and weights are the same, so this is a small
file beside the standard graph, which other providers and TensorRT read.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from .builder import FLOAT, INT32, GraphBuilder
from .target import TargetWriter

_DOMAIN = "com.microsoft"


def fused_target(writer: TargetWriter, model: onnx.ModelProto) -> onnx.ModelProto | None:
    """``model``, which ``writer`` has written, with one node for each layer's attention. None where that operator cannot stand in: for
    TensorRT, beside norms of queries and keys, sums in order (integer weights), and what is not computed in float32."""
    arch = writer.arch
    if writer.static or writer.ordered or arch.qk_norm or writer.precision.compute != FLOAT:
        return None
    g = GraphBuilder("fused")
    rows = g.op("Shape", writer.positions, start=1, end=2)
    last = g.op("Cast", g.op("Sub", g.op("Add", writer.past, rows), g.const([1])), to=INT32)
    # The whole span: if it were the used part, a pass as long as all there is would be taken for a prompt, a chain of rows.
    total = g.op("Cast", g.op("Squeeze", g.op("Shape", "slots")), to=INT32)
    bias = g.op("Where", writer.mask, g.const(0, np.float32), g.const(-np.inf, np.float32))
    for layer, (joined, attended) in enumerate(writer.attended):
        past, present = ([f"{side}.{layer}.{kind}" for kind in ("key", "value")] for side in ("past", "present"))
        g.ops(
            "GroupQueryAttention",
            *(g.op("Unsqueeze", joined, g.const([0])), "", "", *past, last, total, *writer.rope, writer.positions, bias),
            outs=(f"fused.{layer}", *present),
            domain=_DOMAIN,
            num_heads=arch.heads,
            kv_num_heads=arch.kv_heads,
            do_rotary=1,
            scale=arch.head_dim**-0.5,
        )
        g.op("Reshape", f"fused.{layer}", g.const([-1, arch.heads * arch.head_dim]), out=attended)
    return _with(model, g.graph())


def _with(model: onnx.ModelProto, new: onnx.GraphProto) -> onnx.ModelProto:
    """``model`` with the nodes of ``new`` in place of those that made the same tensors, and of all that only they needed."""
    made = {name for node in new.node for name in node.output}
    nodes = [node for node in model.graph.node if made.isdisjoint(node.output)]
    for node in new.node:
        node.name = f"fused.{node.name}"
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    del fused.graph.node[:], fused.graph.initializer[:]
    fused.graph.node.extend(_in_order([*nodes, *new.node], [value.name for value in model.graph.output]))
    used = {name for node in fused.graph.node for name in node.input}
    known = {each.name: each for each in (*model.graph.initializer, *new.initializer)}
    fused.graph.initializer.extend(each for name, each in known.items() if name in used)
    fused.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return fused


def _in_order(nodes: list[onnx.NodeProto], results: list[str]) -> list[onnx.NodeProto]:
    """The nodes that ``results`` need, each after those that it reads."""
    maker = {name: node for node in nodes for name in node.output}
    placed: dict[str, onnx.NodeProto] = {}
    waiting = [maker[name] for name in reversed(results)]
    while waiting:
        node = waiting[-1]
        missing = [maker[name] for name in node.input if name in maker and maker[name].name not in placed]
        if missing:
            waiting.extend(missing)
        else:
            placed[waiting.pop().name] = node
    return list(placed.values())
