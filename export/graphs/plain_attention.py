"""Attention from products and a softmax, for heads that TensorRT's Attention operator does not build."""

from __future__ import annotations

import numpy as np

from ..checkpoints.arch import Arch
from .builder import GraphBuilder


def builds_attention(head_dim: int) -> bool:
    """Whether TensorRT-RTX builds the Attention operator for heads of this size. Version 1.7.1 failed for 4, 8, 10, 12, 36, 66, 100 and
    320, and built 16, 24, 40, 64, 80, 120, 128 and 192."""
    return head_dim % 8 == 0 and 16 <= head_dim <= 256


def plain_attention(g: GraphBuilder, arch: Arch, compute: int, query: str, keys: str, values: str, mask: str) -> str:
    """query [B, heads, n, D], keys and values [B, kv_heads, span, D], mask [B, 1, n, span] bool -> [B, n, heads, D]. ``compute``: the ONNX
    type of all but the mask. Every row attends to a slot at least."""

    def number(value: float) -> str:
        return g.op("Cast", g.const(value, np.float32), to=compute)

    grouped = g.op("Reshape", g.op("Mul", query, number(arch.head_dim**-0.5)), g.const([0, arch.kv_heads, -1, arch.head_dim]))
    scores = g.op("MatMul", grouped, g.op("Transpose", keys, perm=[0, 1, 3, 2]))
    seen = g.op("Concat", *[mask] * (arch.heads // arch.kv_heads), axis=2)
    weights = g.op("Softmax", g.op("Where", seen, scores, number(-np.inf)), axis=-1)
    context = g.op("Reshape", g.op("MatMul", weights, values), g.const([0, arch.heads, -1, arch.head_dim]))
    return g.op("Transpose", context, perm=[0, 2, 1, 3])
