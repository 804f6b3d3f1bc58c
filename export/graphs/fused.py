"""A variant of the target graph for ONNX Runtime on CPU, which uses its fused operator GroupQueryAttention.

The operator replaces ten standard nodes per layer: it applies the rotary embedding, writes the cache in place and computes the attention
(docs/lab/passes.md, "Attention, new over old"). Inputs, outputs and weights are the same, so this is a small additional file. Other
providers and TensorRT read the standard graph.
"""

from __future__ import annotations

import numpy as np
import onnx

from .builder import FLOAT, INT32
from .target import TargetWriter
from .weights import WeightCount


class FusedTargetWriter(TargetWriter):
    """Writes the target's graph with one attention node per layer."""

    def _prepare_attention(self, slots: str) -> None:
        g = self.g
        rows = g.op("Shape", self.positions, start=1, end=2)
        self.last = g.op("Cast", g.op("Sub", g.op("Add", self.past, rows), g.const([1])), to=INT32)
        # The whole span, not the used part: if it equals the number of rows, the operator assumes a prompt and ignores the tree.
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
    """The fused variant of a finished graph, with the same weight file. None if the operator cannot express it: graphs for TensorRT, norms
    of queries and keys, attention with ordered sums (int8 and int4), and computation in another type than float32."""
    arch, precision = standard.arch, standard.precision
    if standard.static or standard.ordered or arch.qk_norm or precision.compute != FLOAT:
        return None
    weights = WeightCount(standard.weights.location)  # the same tensors in the same order have the same offsets in the file
    writer = FusedTargetWriter(arch, None, precision, standard.capacity, weights, standard.captured)
    for _ in writer.build():
        pass
    assert weights.size == standard.weights.size
    return writer.model()
