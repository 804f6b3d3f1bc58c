"""The table of token embeddings: how a graph holds it, and how it reads the rows of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from .builder import FLOAT, INT8, GraphBuilder
from .precision import NUMPY_TYPES, Precision, is_quantized
from .weights import quantize_outputs


@dataclass(frozen=True)
class Embedding:
    """The tensors that hold the table. ``table``: [V, H], or [H, V] where it is the int8 head as well. ``scale``: float32 [V] if the table
    is int8, one a token."""

    table: onnx.TensorProto
    scale: onnx.TensorProto | None = None

    def rows(self, g: GraphBuilder, tokens: str, compute: int, out: str | None = None) -> str:
        """The rows [n, H] of ``tokens`` [1, n], in the ONNX type ``compute``."""
        flat = g.op("Reshape", tokens, g.const([-1]))
        turned = self.scale is not None and self.table.dims[0] != self.scale.dims[0]
        casts = int(self.table.data_type) != compute
        stored = g.op("Gather", g.initializer(self.table), flat, axis=1 if turned else 0, out=None if casts else out)
        if self.scale is None:
            return g.op("Cast", stored, to=compute, out=out) if casts else stored
        values = g.op("Cast", g.op("Transpose", stored, perm=[1, 0]) if turned else stored, to=FLOAT)
        scale = g.op("Unsqueeze", g.op("Gather", g.initializer(self.scale), flat), g.const([1]))
        return g.op("Mul", values, scale, out=out)


def is_quantized_embedding(precision: Precision, hidden: int) -> bool:
    """Whether the table is stored in eight bits, with one scale a token."""
    return precision.embedding == INT8 and is_quantized(precision.embedding, hidden)


def rounded_embedding(rows: np.ndarray, precision: Precision) -> np.ndarray:
    """float32 rows [n, H] of the table, as a graph of this precision has them."""
    if is_quantized_embedding(precision, rows.shape[1]):
        values, scale = quantize_outputs(rows)
        return np.asarray(values * scale[:, None])
    return np.asarray(rows.astype(NUMPY_TYPES[precision.stored]), np.float32)
