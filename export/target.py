"""The target graph, written node by node (design.md section 4).

inputs   tokens[1,n] depth[1,n] int64 · tree_mask[n,n] bool · past[1] int64 · slots[span] int64 · rows[r] int64
         past.i.key / past.i.value [1,Hkv,span,D]
outputs  next_token[1,r] int64 · logits[1,r,V] float32 · features[1,n,3H] · present.i.key / present.i.value [1,Hkv,span,D]

Row j of a pass writes its key and value to slot past+j and stands at position past+depth[j]. It attends to every committed
slot (< past) and, among the rows of this pass, to those tree_mask[j] names. `slots` is 0, 1, ..., span - 1; the caller lays the cache out
for the slots in use, so that cost follows them and nothing is sliced.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from ml_dtypes import bfloat16

from .arch import Arch
from .checkpoint import Checkpoint
from .errors import CheckpointError
from .graph import BFLOAT16, BOOL, DOUBLE, FLOAT, FLOAT16, INT4, INT8, INT64, GraphBuilder
from .weights import BLOCK, WeightFile, pack_int4, quantize_blocks, row_chunks


@dataclass(frozen=True)
class Precision:
    """How weights are stored and what the graph computes in (ONNX types)."""

    name: str
    compute: int  # activations and KV
    stored: int  # weights that are not quantized
    matrix_bits: int | None = None  # weight-only quantization of the layers' matrices
    head_bits: int | None = None


NUMPY_TYPES: dict[int, np.dtype[Any]] = {FLOAT: np.dtype(np.float32), FLOAT16: np.dtype(np.float16), BFLOAT16: np.dtype(bfloat16)}


# The head keeps eight bits in int4: it is where four bits cost most quality, and llama.cpp and OpenVINO do the same.
PRECISIONS = {
    p.name: p
    for p in (
        Precision("fp32", FLOAT, FLOAT),
        Precision("fp16", FLOAT16, FLOAT16),
        # ONNX Runtime has no bfloat16 kernels on a CPU: half the file, float32 once loaded.
        Precision("bf16", FLOAT, BFLOAT16),
        Precision("int8", FLOAT, FLOAT, 8, 8),
        Precision("int4", FLOAT, FLOAT, 4, 8),
    )
}


class TargetWriter:
    """Builds the target's graph while streaming its weights to the external file."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, capacity: int, weights: WeightFile) -> None:
        self.checkpoint, self.precision, self.capacity, self.weights = checkpoint, precision, capacity, weights
        self.arch: Arch = checkpoint.arch
        self.ordered = precision.matrix_bits is not None
        self.g = GraphBuilder("target")

    def build(self) -> Iterator[int]:
        """Write the whole graph; yields the number of finished layers, for progress."""
        g, arch = self.g, self.arch
        tokens = g.input("tokens", INT64, [1, "n"])
        depth = g.input("depth", INT64, [1, "n"])
        tree_mask = g.input("tree_mask", BOOL, ["n", "n"])
        self.past = g.input("past", INT64, [1])
        slots = g.input("slots", INT64, ["span"])
        rows = g.input("rows", INT64, ["r"])
        self.positions = g.op("Add", depth, self.past)
        self.mask = self._attention_mask(tree_mask, slots)
        cos, sin = arch.rope.tables(arch.head_dim, self.capacity)
        self.key_rope = [self._array("rope.cos", cos), self._array("rope.sin", sin)]
        self.query_rope = self.key_rope
        if self.ordered:  # its scores are not scaled by an operator of their own
            scale = arch.head_dim**-0.5
            self.query_rope = [self._array("rope.scaled_cos", cos * scale), self._array("rope.scaled_sin", sin * scale)]
            self.mask = g.op("Concat", *[self.mask] * (arch.heads // arch.kv_heads), axis=2)

        embedding = self._stored("model.embed_tokens.weight", (arch.vocab, arch.hidden), ["model.embed_tokens.weight"])
        rows_of_tokens = self._computable(g.op("Gather", embedding, tokens))
        hidden = g.op("Reshape", rows_of_tokens, g.const([-1, arch.hidden]), out=stream(0))
        captured: dict[int, str] = {}
        for layer in range(arch.layers):
            captured[layer] = hidden
            hidden = self._layer(layer, hidden)
            yield layer + 1
        features = g.op("Concat", *(captured[i] for i in arch.captured), axis=1)
        g.op("Unsqueeze", features, g.const([0]), out="features")
        self._head(g.op("Gather", hidden, rows), embedding)
        g.output("next_token", INT64, [1, "r"])
        g.output("logits", FLOAT, [1, "r", arch.vocab])
        g.output("features", self.precision.compute, [1, "n", 3 * arch.hidden])
        for layer in range(arch.layers):
            for kind in ("key", "value"):
                g.output(f"present.{layer}.{kind}", self.precision.compute, self._cache_shape())

    def model(self) -> onnx.ModelProto:
        return self.g.model("resps-export")

    def _cache_shape(self) -> list[int | str]:
        return [1, self.arch.kv_heads, "span", self.arch.head_dim]

    def _attention_mask(self, tree_mask: str, slots: str) -> str:
        """[1,1,n,span] bool, once per pass: committed slots, and among this pass's own rows what the tree allows."""
        g = self.g
        relative = g.op("Sub", slots, self.past)
        width = g.op("Shape", tree_mask, start=0, end=1)
        inside = g.op("And", g.op("GreaterOrEqual", relative, g.const([0])), g.op("Less", relative, width))
        column = g.op("Min", g.op("Max", relative, g.const([0])), g.op("Sub", width, g.const([1])))
        of_tree = g.op("And", g.op("Gather", tree_mask, column, axis=1), inside)
        attend = g.op("Or", of_tree, g.op("Less", relative, g.const([0])))
        return g.op("Unsqueeze", attend, g.const([0, 1]))

    def _layer(self, layer: int, hidden: str) -> str:
        g = self.g
        normed = self._norm(hidden, f"model.layers.{layer}.input_layernorm.weight")
        hidden = g.op("Add", hidden, self._attention(layer, normed))
        normed = self._norm(hidden, f"model.layers.{layer}.post_attention_layernorm.weight")
        gate_up = self._linear(layer, "gate_up", normed)
        gate, up = g.ops("Split", gate_up, outs=(None, None), axis=1, num_outputs=2)
        swish = g.op("Mul", gate, g.op("Sigmoid", gate))
        return g.op("Add", hidden, self._linear(layer, "down", g.op("Mul", swish, up)), out=stream(layer + 1))

    def _attention(self, layer: int, normed: str) -> str:
        g, arch = self.g, self.arch
        heads = arch.heads + 2 * arch.kv_heads
        joined = g.op("Reshape", self._linear(layer, "qkv", normed), g.const([1, -1, heads, arch.head_dim]))
        by_head = g.op("Transpose", joined, perm=[0, 2, 1, 3])
        sizes = g.const([arch.heads, arch.kv_heads, arch.kv_heads])
        query, key, value = g.ops("Split", by_head, sizes, outs=(None, None, None), axis=1)
        if arch.qk_norm:
            query = self._norm(query, f"model.layers.{layer}.self_attn.q_norm.weight", arch.head_dim)
            key = self._norm(key, f"model.layers.{layer}.self_attn.k_norm.weight", arch.head_dim)
        query = g.op("RotaryEmbedding", query, *self.query_rope, self.positions)
        key = g.op("RotaryEmbedding", key, *self.key_rope, self.positions)
        keys, values = self._cached(layer, "key", key), self._cached(layer, "value", value)
        attend = self._ordered_attention if self.ordered else self._fused_attention
        context = attend(query, keys, values)
        flat = g.op("Transpose", context, perm=[0, 2, 1, 3])
        return self._linear(layer, "o", g.op("Reshape", flat, g.const([-1, arch.heads * arch.head_dim])))

    def _fused_attention(self, query: str, keys: str, values: str) -> str:
        return self.g.op("Attention", query, keys, values, self.mask, scale=self.arch.head_dim**-0.5)

    def _ordered_attention(self, query: str, keys: str, values: str) -> str:
        """Attention whose result does not depend on where in the cache the attended slots lie, nor on how many rows a pass has.

        A draft tree leaves gaps between a node's ancestors, so float32 sums over slots run in another order than in plain decoding and
        differ by 1e-7. Products with int8 activations (MatMulNBits) round that up to 1e-2 and more, which changes tokens: measured in
        docs/design.md. Sums in float64, rounded once, come out the same. All heads that share a key form one matrix of at least two
        rows, because single rows take another kernel. Costs 9 % of a pass at 100 slots and 44 % at 1,000 (docs/benchmarks.md), hence
        only where weights are quantized.
        """
        g, arch = self.g, self.arch
        grouped = g.op("Reshape", query, g.const([1, arch.kv_heads, -1, arch.head_dim]))
        scores = g.op("MatMul", grouped, g.op("Transpose", keys, perm=[0, 1, 3, 2]))
        masked = g.op("Where", self.mask, scores, g.const(-np.inf, np.float32))
        weights = g.op("Exp", g.op("Sub", masked, g.op("ReduceMax", masked, g.const([-1]))))
        exact = g.op("Cast", weights, to=DOUBLE)
        summed = g.op("MatMul", exact, g.op("Cast", values, to=DOUBLE))
        context = g.op("Cast", g.op("Div", summed, g.op("ReduceSum", exact, g.const([-1]))), to=FLOAT)
        return g.op("Reshape", context, g.const([1, arch.heads, -1, arch.head_dim]))

    def _cached(self, layer: int, kind: str, update: str) -> str:
        """Write the new rows into the cache in place; all of its `span` slots are returned.

        TensorScatter must sit directly between a graph input and a graph output, or it copies the cache.
        """
        g = self.g
        past = g.input(f"past.{layer}.{kind}", self.precision.compute, self._cache_shape())
        return g.op("TensorScatter", past, update, self.past, out=f"present.{layer}.{kind}", axis=-2, mode="linear")

    def _head(self, hidden: str, embedding: str) -> None:
        g, arch, precision = self.g, self.arch, self.precision
        normed = self._norm(hidden, "model.norm.weight")
        name = "model.embed_tokens.weight" if arch.tied_head else "lm_head.weight"
        if precision.head_bits and arch.hidden % BLOCK == 0:
            logits = g.op("MatMul", normed, self._quantized("head", (arch.vocab, arch.hidden), [name], precision.head_bits))
        else:
            weight = embedding if arch.tied_head else self._stored(name, (arch.vocab, arch.hidden), [name])
            logits = g.op("Gemm", normed, self._computable(weight), transB=1)
        if precision.compute != FLOAT:
            logits = g.op("Cast", logits, to=FLOAT)
        g.op("Unsqueeze", logits, g.const([0]), out="logits")
        g.op("ArgMax", "logits", out="next_token", axis=-1, keepdims=0)

    def _norm(self, x: str, name: str, width: int | None = None) -> str:
        weight = self._computable(self._stored(name, (width or self.arch.hidden,), [name]))
        return self.g.op("RMSNormalization", x, weight, axis=-1, epsilon=self.arch.rms_eps)

    def _linear(self, layer: int, matrix: str, x: str) -> str:
        """One matrix product for all parts of ``matrix``.

        Weights in floating point keep the checkpoint's [outputs, inputs] layout (Gemm, transB): parts are joined by appending, nothing
        is transposed in memory. Quantized ones are [inputs, outputs], blocks along axis 0, the form that ONNX Runtime fuses.
        """
        parts, outputs, inputs = self.arch.linears[matrix]
        names = [f"model.layers.{layer}.{part}" for part in parts]
        stem = f"layers.{layer}.{matrix}"
        biased = self.arch.output_bias if matrix == "o" else matrix == "qkv" and self.arch.qkv_bias
        bias = [self._computable(self._stored(f"{stem}.bias", (outputs,), [f"{name}.bias" for name in names]))] if biased else []
        weights = [f"{name}.weight" for name in names]
        bits = self.precision.matrix_bits
        if bits and inputs % BLOCK == 0:
            product = self.g.op("MatMul", x, self._quantized(stem, (outputs, inputs), weights, bits))
            return self.g.op("Add", product, *bias) if bias else product
        weight = self._computable(self._stored(f"{stem}.weight", (outputs, inputs), weights))
        return self.g.op("Gemm", x, weight, *bias, transB=1)

    def _quantized(self, stem: str, shape: tuple[int, int], parts: list[str], bits: int) -> str:
        """Blocked int8 or int4 weights behind a DequantizeLinear; only the small integer form of the matrix is in memory."""
        self._expect_shape(shape, parts)
        values, scales = [], []
        for part in parts:
            for chunk in row_chunks(self.checkpoint, part):
                value, scale = quantize_blocks(chunk, bits)
                values.append(value.T)
                scales.append(scale.T)
        value, scale = np.concatenate(values, axis=1), np.concatenate(scales, axis=1)
        data, dtype = (pack_int4(np.ascontiguousarray(value)), INT4) if bits == 4 else (value, INT8)
        quantized = self.g.initializer(self.weights.add(f"{stem}.quantized", dtype, value.shape, [data]))
        scale_name = self._array(f"{stem}.scale", scale)
        return self.g.op("DequantizeLinear", quantized, scale_name, axis=0, block_size=BLOCK)

    @np.errstate(over="ignore")  # a weight beyond fp16 becomes infinite, which the check finds and reports
    def _stored(self, name: str, shape: tuple[int, ...], parts: list[str]) -> str:
        """Checkpoint tensors, joined along the first axis, in the stored type."""
        self._expect_shape(shape, parts)
        kind = NUMPY_TYPES[self.precision.stored]
        chunks = (chunk.astype(kind) for part in parts for chunk in row_chunks(self.checkpoint, part))
        return self.g.initializer(self.weights.add(name, self.precision.stored, shape, chunks))

    def _expect_shape(self, shape: tuple[int, ...], parts: list[str]) -> None:
        """Raises CheckpointError unless ``parts``, joined along the first axis, have ``shape``."""
        found = [self.checkpoint.shape(part) for part in parts]
        if any(each[1:] != shape[1:] for each in found) or sum(each[0] for each in found) != shape[0]:
            raise CheckpointError(f"{', '.join(parts)} have shapes {found}, the config asks for {shape} — config and weights differ")

    def _computable(self, stored: str) -> str:
        same = self.precision.stored == self.precision.compute
        return stored if same else self.g.op("Cast", stored, to=self.precision.compute)

    def _array(self, name: str, value: np.ndarray) -> str:
        array = value.astype(NUMPY_TYPES[self.precision.compute])
        return self.g.initializer(self.weights.add(name, self.precision.compute, array.shape, [array]))


def stream(layer: int) -> str:
    """Name of the residual stream [n, H] that enters ``layer``."""
    return f"stream.{layer}"
