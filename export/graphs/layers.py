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
from .weights import BLOCK, WeightCount, pack_int4, quantize_blocks, quantize_rows, row_chunks, stored_bytes


@dataclass(frozen=True)
class Precision:
    """How weights are stored and in which type the graph computes (ONNX types)."""

    name: str
    compute: int  # activations and KV cache
    stored: int  # weights that are not quantized
    matrix: int | None = None  # weight-only quantization of the layers' matrices
    head: int | None = None


Quantize = Callable[[np.ndarray], tuple[np.ndarray, ...]]
"""float32 [outputs, inputs] -> integers [outputs, ...] and scales [outputs, ...]."""
NUMPY_TYPES: dict[int, np.dtype[Any]] = {FLOAT: np.dtype(np.float32), FLOAT16: np.dtype(np.float16), BFLOAT16: np.dtype(bfloat16)}


def _by_name(*precisions: Precision) -> dict[str, Precision]:
    return {precision.name: precision for precision in precisions}


# For ONNX Runtime on CPU. In int4 the head keeps eight bits, because four bits cost most quality there; llama.cpp and OpenVINO do the same.
PRECISIONS = _by_name(
    Precision("fp32", FLOAT, FLOAT),
    Precision("fp16", FLOAT16, FLOAT16),
    # ONNX Runtime has no bfloat16 kernels on a CPU: the file is half as large, and the weights are cast to float32 at load.
    Precision("bf16", FLOAT, BFLOAT16),
    Precision("int8", FLOAT, FLOAT, INT8, INT8),
    Precision("int4", FLOAT, FLOAT, INT4, INT8),
)
# For TensorRT. All but fp32 and bf16 compute in float16.
TENSORRT_PRECISIONS = _by_name(
    Precision("fp32", FLOAT, FLOAT),
    Precision("fp16", FLOAT16, FLOAT16),
    Precision("bf16", BFLOAT16, BFLOAT16),
    Precision("fp8", FLOAT16, FLOAT16, FLOAT8, FLOAT8),
    Precision("int8", FLOAT16, FLOAT16, INT8, INT8),
    Precision("int4", FLOAT16, FLOAT16, INT4, INT8),
)
ONNXRUNTIME, TENSORRT = "onnxruntime", "tensorrt"
BACKENDS = {ONNXRUNTIME: PRECISIONS, TENSORRT: TENSORRT_PRECISIONS}


def is_quantized(kind: int | None, inputs: int) -> bool:
    """Whether a matrix is quantized to ``kind`` (None: no quantization). int8 and int4 need a number of inputs that blocks divide
    evenly."""
    return kind == FLOAT8 or (kind is not None and inputs % BLOCK == 0)


class LayerWriter:
    """Appends decoder layers to a graph and streams their weights to the external file. ``name``: of the graph.

    ``source`` may be None if ``weights`` only counts, because then no weight is read. ``static``: the form for TensorRT, in which the cache
    tensors have all ``capacity`` slots and attention reads the first `span`.
    """

    past: str  # number of committed slots
    write: str  # slot of the first row of the pass
    value_write: str  # the same slot, repeated for each part of the values
    positions: str
    mask: str
    span: str  # number of slots that attention reads, [1]; only in the static form
    rope: list[str]  # cos and sin
    window: int | None = None  # number of slots before ``past`` that a row attends to; None means all

    def __init__(
        self, name: str, arch: Arch, source: Weights | None, precision: Precision, capacity: int, weights: WeightCount, static: bool = False
    ) -> None:
        self.name, self.arch, self.source, self.precision, self.capacity, self.weights = name, arch, source, precision, capacity, weights
        self.static = static
        self.g = GraphBuilder(name)
        self._presents: list[tuple[str, int, list[int | str]]] = []

    def _declare_presents(self) -> None:
        """Declare the cache outputs. They must be the graph's last outputs."""
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
        """cos and sin tables, [capacity, head_dim / 2] each."""
        shape, tables = (self.capacity, self.arch.head_dim // 2), self._rotary_tables()
        return [self._computed(name, shape, islice(tables, 1)) for name in ("rope.cos", "rope.sin")]

    def _rotary_tables(self) -> Iterator[np.ndarray]:
        yield from self.arch.rope.tables(self.arch.head_dim, self.capacity)

    def _attention_mask(self, tree_mask: str, slots: str) -> str:
        """Mask [1,1,n,span] bool of all layers: the slots before ``past``, then those that tree_mask [n, columns] allows."""
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
        """One decoder layer. ``normed``: input of the attention. ``residual`` [n, H]: the attention's output is added to it."""
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
        """Split the joined QKV product into rotated queries, rotated keys, and values, each [1, heads, n, D]."""
        g, arch = self.g, self.arch
        heads = arch.heads + 2 * arch.kv_heads
        by_head = g.op("Transpose", g.op("Reshape", joined, g.const([1, -1, heads, arch.head_dim])), perm=[0, 2, 1, 3])
        query, key, value = g.ops("Split", by_head, g.const([arch.heads, arch.kv_heads, arch.kv_heads]), outs=(None,) * 3, axis=1)
        return *self._positioned(layer, query, key), value

    def _positioned(self, layer: int, query: str, key: str) -> tuple[str, str]:
        """Apply the norms of queries and keys, if the model has them, and the rotary embedding. Both are [1, heads, n, D]."""
        if self.arch.qk_norm:
            query = self._norm(query, f"model.layers.{layer}.self_attn.q_norm.weight", self.arch.head_dim)
            key = self._norm(key, f"model.layers.{layer}.self_attn.k_norm.weight", self.arch.head_dim)
        return self._turned(query), self._turned(key)

    def _turned(self, heads: str) -> str:
        return self.g.op("RotaryEmbedding", heads, *self.rope, self.positions)

    def _value_form(self) -> tuple[tuple[int, int], int]:
        """Sizes of the value cache: its dimensions before the slots, and the one after them."""
        return (1, self.arch.kv_heads), self.arch.head_dim

    def _attend(self, query: str, keys: str, values: str) -> str:
        """Attention output, [1, n, heads, D]."""
        attended = self.g.op("Attention", query, keys, values, self.mask, scale=self.arch.head_dim**-0.5)
        return self.g.op("Transpose", attended, perm=[0, 2, 1, 3])

    def _cached(self, layer: int, kind: str, update: str, heads: tuple[int, int], width: int) -> str:
        """Write the new rows [*heads, n, width] into the cache in place, and return the cache with its `span` slots.

        TensorScatter must be directly between a graph input and a graph output, or the cache is copied.
        """
        g = self.g
        past, present = self._cache(layer, kind, heads, width)
        write = self.write if kind == "key" else self.value_write
        g.op("TensorScatter", past, update, write, out=present, axis=-2, mode="linear")
        return g.op("Slice", present, g.const([0]), self.span, g.const([2])) if self.static else present

    def _cache(self, layer: int, kind: str, heads: tuple[int, int], width: int) -> tuple[str, str]:
        """Declare the cache of a layer's keys or values. Returns the names of its input and its output; the caller must write the
        output."""
        shape: list[int | str] = [*heads, self.capacity if self.static else "span", width]
        past, present = (f"{side}.{layer}.{kind}" for side in ("past", "present"))
        self._presents.append((present, self.precision.compute, shape))
        return self.g.input(past, self.precision.compute, shape), present

    def _norm(self, x: str, name: str, width: int | None = None) -> str:
        weight = self._computable(self._stored(name, (width or self.arch.hidden,), [name]))
        return self.g.op("RMSNormalization", x, weight, axis=-1, epsilon=self.arch.rms_eps)

    def _linear(self, layer: int, matrix: str, x: str) -> str:
        """One product for all checkpoint tensors that ``matrix`` joins.

        Floating-point weights, float8 included, keep the checkpoint's [outputs, inputs] layout (Gemm, transB): parts are joined by
        appending, and nothing is transposed in memory. Integers are [inputs, outputs] with blocks along axis 0, the form that ONNX Runtime
        fuses.
        """
        parts, outputs, inputs = self._matrix(layer, matrix)
        names = [f"model.layers.{layer}.{part}" for part in parts]
        stem = f"layers.{layer}.{matrix}"
        biased = self.arch.output_bias if matrix == "o" else matrix == "qkv" and self.arch.qkv_bias
        bias = [self._computable(self._stored(f"{stem}.bias", (outputs,), [f"{name}.bias" for name in names]))] if biased else []
        weights = [f"{name}.weight" for name in names]
        return self._product(x, stem, (outputs, inputs), weights, self.precision.matrix, *bias)

    def _matrix(self, layer: int, matrix: str) -> tuple[tuple[str, ...], int, int]:
        """Checkpoint tensors, number of outputs and number of inputs of a matrix."""
        return self.arch.linears[matrix]

    def _product(self, x: str, stem: str, shape: tuple[int, int], parts: list[str], kind: int | None, *bias: str) -> str:
        """x times the transposed weight [outputs, inputs], which is quantized to ``kind`` if `is_quantized`."""
        if kind == FLOAT8:
            return self.g.op("Gemm", x, self._scaled(stem, shape, parts), *bias, transB=1)
        if kind is not None and is_quantized(kind, shape[1]):
            quantize = partial(quantize_blocks, bits=4 if kind == INT4 else 8)
            product = self.g.op("MatMul", x, self._blocked(stem, shape, parts, kind, quantize, shape[1]))
            return self.g.op("Add", product, *bias) if bias else product
        weight = self._computable(self._stored(f"{stem}.weight", shape, parts))
        return self.g.op("Gemm", x, weight, *bias, transB=1)

    def _blocked(self, stem: str, shape: tuple[int, int], parts: list[str], kind: int, quantize: Quantize, inputs: int) -> str:
        """Blocked int8 or int4 weights [inputs, outputs] and a DequantizeLinear. ``inputs``: number of inputs after ``quantize``."""
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
        """Quantize a matrix [outputs, inputs] to integers of the shape ``values`` and scales of the shape ``scales``, both [..., outputs].
        Only the quantized matrix is in memory as a whole."""

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
        """float8 weights with one scale per output, and a DequantizeLinear."""
        scales: list[np.ndarray] = []

        def values() -> Iterator[np.ndarray]:
            for chunk in self._rows(shape, parts):
                value, scale = quantize_rows(chunk)
                scales.append(scale)
                yield value

        quantized = self.g.initializer(self.weights.add(f"{stem}.quantized", FLOAT8, shape, values()))
        return self.g.op("DequantizeLinear", quantized, self._computed(f"{stem}.scale", shape[:1], scales), axis=0)

    @np.errstate(over="ignore")  # a weight beyond fp16's range becomes infinite, which the parity check reports
    def _stored(self, name: str, shape: tuple[int, ...], parts: list[str]) -> str:
        """Register checkpoint tensors, joined along the first axis, in the stored type."""
        kind = NUMPY_TYPES[self.precision.stored]
        chunks = (chunk.astype(kind) for chunk in self._rows(shape, parts))
        return self.g.initializer(self.weights.add(name, self.precision.stored, shape, chunks))

    def _rows(self, shape: tuple[int, ...], parts: list[str]) -> Iterator[np.ndarray]:
        """Float32 row blocks of checkpoint tensors joined along the first axis. Raises CheckpointError if the result has not ``shape``."""
        assert self.source is not None  # only a WeightFile reads it
        found = [self.source.shape(part) for part in parts]
        if any(each[1:] != shape[1:] for each in found) or sum(each[0] for each in found) != shape[0]:
            raise CheckpointError(f"{', '.join(parts)} have shapes {found}, the config asks for {shape} — config and weights differ")
        for part in parts:
            yield from row_chunks(self.source, part)

    def _computable(self, stored: str) -> str:
        same = self.precision.stored == self.precision.compute
        return stored if same else self.g.op("Cast", stored, to=self.precision.compute)

    def _computed(self, name: str, shape: tuple[int, ...], chunks: Iterable[np.ndarray]) -> str:
        """Register a tensor in the compute type."""
        kind = NUMPY_TYPES[self.precision.compute]
        return self.g.initializer(self.weights.add(name, self.precision.compute, shape, (chunk.astype(kind) for chunk in chunks)))
