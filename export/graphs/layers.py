"""Decoder layers shared by the target and draft graphs: attention over the cache, feed-forward, norms, and weight storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import onnx
from ml_dtypes import bfloat16

from ..checkpoints.arch import Arch
from ..checkpoints.safetensors import Weights
from ..errors import CheckpointError
from .builder import BFLOAT16, FLOAT, FLOAT8, FLOAT16, INT4, INT8, GraphBuilder
from .plain_attention import builds_attention, plain_attention
from .weights import BLOCK, WeightCount, pack_int4, quantize_blocks, quantize_rows, row_chunks, stored_bytes


@dataclass(frozen=True)
class Precision:
    """How weights are stored and what the graph computes in (ONNX types)."""

    name: str
    compute: int  # activations and KV
    stored: int  # weights that are not quantized
    matrix: int | None = None  # weight-only quantization of the layers' matrices
    head: int | None = None


Quantize = Callable[[np.ndarray], tuple[np.ndarray, ...]]
"""float32 [outputs, inputs] -> integers [outputs, ...] and scales [outputs, ...]."""
NUMPY_TYPES: dict[int, np.dtype[Any]] = {FLOAT: np.dtype(np.float32), FLOAT16: np.dtype(np.float16), BFLOAT16: np.dtype(bfloat16)}


# The head keeps eight bits in int4: it is where four bits cost most quality, and llama.cpp and OpenVINO do the same.
# On ONNX Runtime's CPU:
PRECISIONS = {
    p.name: p
    for p in (
        Precision("fp32", FLOAT, FLOAT),
        Precision("fp16", FLOAT16, FLOAT16),
        # ONNX Runtime has no bfloat16 kernels on a CPU: half the file, float32 once loaded.
        Precision("bf16", FLOAT, BFLOAT16),
        Precision("int8", FLOAT, FLOAT, INT8, INT8),
        Precision("int4", FLOAT, FLOAT, INT4, INT8),
    )
}
# On a GPU everything but fp32 and bf16 is computed in float16.
TENSORRT_PRECISIONS = {
    p.name: p
    for p in (
        Precision("fp32", FLOAT, FLOAT),
        Precision("fp16", FLOAT16, FLOAT16),
        Precision("bf16", BFLOAT16, BFLOAT16),
        Precision("fp8", FLOAT16, FLOAT16, FLOAT8, FLOAT8),
        Precision("int8", FLOAT16, FLOAT16, INT8, INT8),
        Precision("int4", FLOAT16, FLOAT16, INT4, INT8),
    )
}
ONNXRUNTIME, TENSORRT = "onnxruntime", "tensorrt"
BACKENDS = {ONNXRUNTIME: PRECISIONS, TENSORRT: TENSORRT_PRECISIONS}


def is_quantized(kind: int | None, inputs: int) -> bool:
    """Whether a matrix of this many inputs that ought to be stored in ``kind`` is: blocks must fit. ``None``: stored as it is."""
    return kind == FLOAT8 or (kind is not None and inputs % BLOCK == 0)


class LayerWriter:
    """Appends decoder layers to a graph while streaming their weights to the external file. ``name`` is the graph's.

    ``source`` may be None where ``weights`` only counts: nothing is read before a WeightFile asks for it.
    ``static``: the form that TensorRT builds, where the cache tensors have all ``capacity`` slots and attention reads the first `span`.
    """

    past: str  # committed slots: all of them are attended to
    write: str  # slot of the pass's first row
    value_write: str  # the same, for each part of the values
    positions: str
    mask: str
    span: str  # how many slots attention reads, [1]; in the static form
    rope: list[str]  # cos and sin
    window: int | None = None  # slots before ``past`` that are seen; None is all

    def __init__(
        self, name: str, arch: Arch, source: Weights | None, precision: Precision, capacity: int, weights: WeightCount, static: bool = False
    ) -> None:
        self.name, self.arch, self.source, self.precision, self.capacity, self.weights = name, arch, source, precision, capacity, weights
        self.static = static
        self.g = GraphBuilder(name)
        self._presents: list[tuple[str, int, list[int | str]]] = []

    def _declare_presents(self) -> None:
        """The cache tensors are the graph's last outputs."""
        for name, kind, shape in self._presents:
            self.g.output(name, kind, shape)

    def model(self) -> onnx.ModelProto:
        """The finished graph."""
        return self.g.model("resps-export")

    @property
    def cache_bytes(self) -> int:
        """Size of the KV cache with ``capacity`` slots in bytes."""
        presents = [(kind, [self.capacity if size == "span" else int(size) for size in shape]) for _, kind, shape in self._presents]
        return sum(stored_bytes(kind, shape) for kind, shape in presents)

    def _rotary(self) -> list[str]:
        """cos and sin tables."""
        shape, tables = (self.capacity, self.arch.head_dim // 2), self._rotary_tables()
        return [self._computed(name, shape, islice(tables, 1)) for name in ("rope.cos", "rope.sin")]

    def _rotary_tables(self) -> Iterator[np.ndarray]:
        yield from self.arch.rope.tables(self.arch.head_dim, self.capacity)

    def _attention_mask(self, tree_mask: str, slots: str) -> str:
        """[1,1,n,span] bool, once per pass: the slots before ``past``, and after them what tree_mask [n, columns] allows."""
        g = self.g
        if self.static:
            self.span = g.op("Shape", slots)
        relative = g.op("Sub", slots, self.past)
        columns = g.op("Shape", tree_mask, start=1, end=2)
        inside = g.op("And", g.op("GreaterOrEqual", relative, g.const([0])), g.op("Less", relative, columns))
        column = g.op("Min", g.op("Max", relative, g.const([0])), g.op("Sub", columns, g.const([1])))
        of_tree = g.op("And", g.op("Gather", tree_mask, column, axis=1), inside)
        before = g.op("Less", relative, g.const([0]))
        if self.window is not None:
            before = g.op("And", before, g.op("GreaterOrEqual", relative, g.const([-self.window])))
        attend = g.op("Or", of_tree, before)
        return g.op("Unsqueeze", attend, g.const([0, 1]))

    def _layer(self, layer: int, normed: str, residual: str, out: str | None = None) -> str:
        """One decoder layer: ``normed`` is what attention reads, ``residual`` [n, H] what its result is added to."""
        g = self.g
        hidden = g.op("Add", residual, self._attention(layer, normed))
        normed = self._norm(hidden, f"model.layers.{layer}.post_attention_layernorm.weight")
        gate_up = self._linear(layer, "gate_up", normed)
        gate, up = g.ops("Split", gate_up, outs=(None, None), axis=1, num_outputs=2)
        swish = g.op("Mul", gate, g.op("Sigmoid", gate))
        return g.op("Add", hidden, self._linear(layer, "down", g.op("Mul", swish, up)), out=out)

    def _attention(self, layer: int, normed: str) -> str:
        g, arch = self.g, self.arch
        joined = self._linear(layer, "qkv", normed)
        query, key, value = self._heads(layer, joined)
        keys = self._cached(layer, "key", key, (1, arch.kv_heads), arch.head_dim)
        values = self._cached(layer, "value", value, *self._value_form())
        attended = g.op("Reshape", self._attend(query, keys, values), g.const([-1, arch.heads * arch.head_dim]))
        return self._linear(layer, "o", attended)

    def _heads(self, layer: int, joined: str) -> tuple[str, str, str]:
        """The product for all parts -> queries and keys, both turned to their positions, and values [1, heads, n, D]."""
        g, arch = self.g, self.arch
        heads = arch.heads + 2 * arch.kv_heads
        by_head = g.op("Transpose", g.op("Reshape", joined, g.const([1, -1, heads, arch.head_dim])), perm=[0, 2, 1, 3])
        query, key, value = g.ops("Split", by_head, g.const([arch.heads, arch.kv_heads, arch.kv_heads]), outs=(None,) * 3, axis=1)
        return *self._positioned(layer, query, key), value

    def _positioned(self, layer: int, query: str, key: str) -> tuple[str, str]:
        """Queries and keys [1, heads, n, D], perhaps with a norm each, turned."""
        if self.arch.qk_norm:
            query = self._norm(query, f"model.layers.{layer}.self_attn.q_norm.weight", self.arch.head_dim)
            key = self._norm(key, f"model.layers.{layer}.self_attn.k_norm.weight", self.arch.head_dim)
        return self._turned(query), self._turned(key)

    def _turned(self, heads: str) -> str:
        return self.g.op("RotaryEmbedding", heads, *self.rope, self.positions)

    def _value_form(self) -> tuple[tuple[int, int], int]:
        """The cached values' sizes before and behind their slots."""
        return (1, self.arch.kv_heads), self.arch.head_dim

    def _attend(self, query: str, keys: str, values: str) -> str:
        """[1, n, heads, D]."""
        if self.static and not builds_attention(self.arch.head_dim):
            return plain_attention(self.g, self.arch, self.precision.compute, query, keys, values, self.mask)
        attended = self.g.op("Attention", query, keys, values, self.mask, scale=self.arch.head_dim**-0.5)
        return self.g.op("Transpose", attended, perm=[0, 2, 1, 3])

    def _cached(self, layer: int, kind: str, update: str, heads: tuple[int, int], width: int) -> str:
        """Write the new rows [*heads, n, width] into the cache in place; all of its `span` slots are returned.

        TensorScatter must sit directly between a graph input and a graph output, or it copies the cache.
        """
        g = self.g
        past, present = self._cache(layer, kind, heads, width)
        write = self.write if kind == "key" else self.value_write
        g.op("TensorScatter", past, update, write, out=present, axis=-2, mode="linear")
        return g.op("Slice", present, g.const([0]), self.span, g.const([2])) if self.static else present

    def _cache(self, layer: int, kind: str, heads: tuple[int, int], width: int) -> tuple[str, str]:
        """Declare a layer's keys or values: the graph's input, and the output that some node must still give."""
        shape: list[int | str] = [*heads, self.capacity if self.static else "span", width]
        past, present = (f"{side}.{layer}.{kind}" for side in ("past", "present"))
        self._presents.append((present, self.precision.compute, shape))
        return self.g.input(past, self.precision.compute, shape), present

    def _norm(self, x: str, name: str, width: int | None = None) -> str:
        weight = self._computable(self._stored(name, (width or self.arch.hidden,), [name]))
        return self.g.op("RMSNormalization", x, weight, axis=-1, epsilon=self.arch.rms_eps)

    def _linear(self, layer: int, matrix: str, x: str) -> str:
        """One matrix product for all parts of ``matrix``.

        Weights in floating point keep the checkpoint's [outputs, inputs] layout (Gemm, transB): parts are joined by appending, nothing
        is transposed in memory. So do float8 ones. Integers are [inputs, outputs], blocks along axis 0, the form that ONNX Runtime fuses.
        """
        parts, outputs, inputs = self._matrix(layer, matrix)
        names = [f"model.layers.{layer}.{part}" for part in parts]
        stem = f"layers.{layer}.{matrix}"
        biased = self.arch.output_bias if matrix == "o" else matrix == "qkv" and self.arch.qkv_bias
        bias = [self._computable(self._stored(f"{stem}.bias", (outputs,), [f"{name}.bias" for name in names]))] if biased else []
        weights = [f"{name}.weight" for name in names]
        return self._product(x, stem, (outputs, inputs), weights, self.precision.matrix, *bias)

    def _matrix(self, layer: int, matrix: str) -> tuple[tuple[str, ...], int, int]:
        """Checkpoint parts, outputs and inputs of a matrix."""
        return self.arch.linears[matrix]

    def _product(self, x: str, stem: str, shape: tuple[int, int], parts: list[str], kind: int | None, *bias: str) -> str:
        """x times the transposed weight [outputs, inputs], quantized to ``kind`` where blocks fit."""
        if kind == FLOAT8:
            return self.g.op("Gemm", x, self._scaled(stem, shape, parts), *bias, transB=1)
        if kind is not None and is_quantized(kind, shape[1]):
            quantize = partial(quantize_blocks, bits=4 if kind == INT4 else 8)
            product = self.g.op("MatMul", x, self._blocked(stem, shape, parts, kind, quantize, shape[1]))
            return self.g.op("Add", product, *bias) if bias else product
        weight = self._computable(self._stored(f"{stem}.weight", shape, parts))
        return self.g.op("Gemm", x, weight, *bias, transB=1)

    def _blocked(self, stem: str, shape: tuple[int, int], parts: list[str], kind: int, quantize: Quantize, inputs: int) -> str:
        """Blocked int8 or int4 weights [inputs, outputs] behind a DequantizeLinear. ``inputs``: of what ``quantize`` returns."""
        value, scale = self._integers(stem, shape, parts, kind, quantize, (inputs, shape[0]), (inputs // BLOCK, shape[0]))
        return self.g.op("DequantizeLinear", value, scale, axis=0, block_size=BLOCK)

    @np.errstate(over="ignore")  # as for _stored
    def _integers(
        self,
        stem: str,
        shape: tuple[int, int],
        parts: list[str],
        kind: int,
        quantize: Quantize,
        values: tuple[int, ...],
        scales: tuple[int, ...],
    ) -> tuple[str, str]:
        """Integers of the shape ``values`` and scales of the shape ``scales``, both [..., outputs]. Only this small form is in memory."""

        def arrays() -> Iterator[np.ndarray]:
            chunks = map(quantize, self._rows(shape, parts))
            value, scale = (np.concatenate([array.T for array in each], axis=-1) for each in zip(*chunks, strict=True))
            yield pack_int4(np.ascontiguousarray(value)) if kind == INT4 else value
            yield scale

        made = arrays()
        quantized = self.g.initializer(self.weights.add(f"{stem}.quantized", kind, values, islice(made, 1)))
        return quantized, self._computed(f"{stem}.scale", scales, made)

    @np.errstate(over="ignore", invalid="ignore")  # as for _stored
    def _scaled(self, stem: str, shape: tuple[int, int], parts: list[str]) -> str:
        """float8 weights with one scale an output behind a DequantizeLinear."""
        scales: list[np.ndarray] = []

        def values() -> Iterator[np.ndarray]:
            for chunk in self._rows(shape, parts):
                value, scale = quantize_rows(chunk)
                scales.append(scale)
                yield value

        quantized = self.g.initializer(self.weights.add(f"{stem}.quantized", FLOAT8, shape, values()))
        return self.g.op("DequantizeLinear", quantized, self._computed(f"{stem}.scale", shape[:1], scales), axis=0)

    @np.errstate(over="ignore")  # a weight beyond fp16 becomes infinite, which the check finds and reports
    def _stored(self, name: str, shape: tuple[int, ...], parts: list[str]) -> str:
        """Checkpoint tensors, joined along the first axis, in the stored type."""
        kind = NUMPY_TYPES[self.precision.stored]
        chunks = (chunk.astype(kind) for chunk in self._rows(shape, parts))
        return self.g.initializer(self.weights.add(name, self.precision.stored, shape, chunks))

    def _rows(self, shape: tuple[int, ...], parts: list[str]) -> Iterator[np.ndarray]:
        """Checkpoint tensors, joined along the first axis, as float32 row blocks. Raises CheckpointError unless that has ``shape``."""
        assert self.source is not None  # only a WeightFile iterates
        found = [self.source.shape(part) for part in parts]
        if any(each[1:] != shape[1:] for each in found) or sum(each[0] for each in found) != shape[0]:
            raise CheckpointError(f"{', '.join(parts)} have shapes {found}, the config asks for {shape} — config and weights differ")
        for part in parts:
            yield from row_chunks(self.source, part)

    def _computable(self, stored: str) -> str:
        same = self.precision.stored == self.precision.compute
        return stored if same else self.g.op("Cast", stored, to=self.precision.compute)

    def _computed(self, name: str, shape: tuple[int, ...], chunks: Iterable[np.ndarray]) -> str:
        """A tensor in the compute type."""
        kind = NUMPY_TYPES[self.precision.compute]
        return self.g.initializer(self.weights.add(name, self.precision.compute, shape, (chunk.astype(kind) for chunk in chunks)))
