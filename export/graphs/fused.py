"""A variant of the target graph for ONNX Runtime on CPU, which uses its fused operator GroupQueryAttention.

Standard operators take ten nodes a layer there; GroupQueryAttention takes queries, keys and values as they come, turns them, writes the
cache in place and attends: docs/lab/passes.md, "Attention, new over old". Inputs, outputs and weights are the same, so this is a small
file beside the standard graph, which other providers and TensorRT read.
"""

from __future__ import annotations

import numpy as np
import onnx

from .builder import FLOAT, INT32
from .target import TargetWriter
from .weights import WeightCount


class FusedTargetWriter(TargetWriter):
    """One node for each layer's attention."""

    def _prepare_attention(self, slots: str) -> None:
        g = self.g
        rows = g.op("Shape", self.positions, start=1, end=2)
        self.last = g.op("Cast", g.op("Sub", g.op("Add", self.past, rows), g.const([1])), to=INT32)
        # The whole span: if it were the used part, a pass as long as all there is would be taken for a prompt, a chain of rows.
        self.total = g.op("Cast", g.op("Squeeze", g.op("Shape", slots)), to=INT32)
        self.bias = g.op("Where", self.mask, g.const(0, np.float32), g.const(-np.inf, np.float32))

    def _attention(self, layer: int, normed: str) -> str:
        g, arch = self.g, self.arch
        joined = g.op("Unsqueeze", self._linear(layer, "qkv", normed), g.const([0]))
        caches = [self._cache(layer, kind, (1, arch.kv_heads), arch.head_dim) for kind in ("key", "value")]
        past, present = zip(*caches, strict=True)
        attended, *_ = g.ops(
            "GroupQueryAttention",
            *(joined, "", "", *past, self.last, self.total, *self.rope, self.positions, self.bias),
            outs=(None, *present),
            domain="com.microsoft",
            num_heads=arch.heads,
            kv_num_heads=arch.kv_heads,
            do_rotary=1,
            scale=arch.head_dim**-0.5,
        )
        return self._linear(layer, "o", g.op("Reshape", attended, g.const([-1, arch.heads * arch.head_dim])))


def fused_target(standard: TargetWriter) -> onnx.ModelProto | None:
    """The fused form of a finished graph, over the same weight file. None where that operator cannot stand in: for TensorRT, beside norms
    of queries and keys, sums in order (integer weights), and what is not computed in float32."""
    arch, precision = standard.arch, standard.precision
    if standard.static or standard.ordered or arch.qk_norm or precision.compute != FLOAT:
        return None
    weights = WeightCount(standard.weights.location)  # the same tensors in the same order, so they lie in the same places
    writer = FusedTargetWriter(arch, None, precision, standard.capacity, weights, standard.captured)
    for _ in writer.build():
        pass
    assert weights.size == standard.weights.size
    return writer.model()
