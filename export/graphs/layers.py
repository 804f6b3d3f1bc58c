"""Decoder layers shared by the target and draft graphs: attention over the cache, feed-forward and norms."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import onnx

from ..checkpoints.arch import Arch
from ..checkpoints.safetensors import Weights
from ..hadamard import hadamard
from .plain_attention import builds_attention, plain_attention
from .precision import Precision
from .storage import StorageWriter
from .weights import WeightCount, stored_bytes


class LayerWriter(StorageWriter):
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
    batch: int | str = 1  # first dimension of the caches

    def __init__(
        self, name: str, arch: Arch, source: Weights | None, precision: Precision, capacity: int, weights: WeightCount, static: bool = False
    ) -> None:
        super().__init__(name, source, precision, weights)
        self.arch, self.capacity, self.static = arch, capacity, static
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
        """Mask [1,1,n,span] bool of all layers."""
        return self.g.op("Unsqueeze", self._attended(tree_mask, slots), self.g.const([0, 1]))

    def _attended(self, tree_mask: str, slots: str) -> str:
        """Bool [n,span]: the slots before ``past``, then those that tree_mask [n, columns] allows."""
        g = self.g
        if self.static:
            self.span = g.op("Shape", slots)
        relative = g.op("Sub", slots, self.past)
        columns = g.op("Shape", tree_mask, start=-1)
        inside = g.op("And", g.op("GreaterOrEqual", relative, g.const([0])), g.op("Less", relative, columns))
        column = g.op("Min", g.op("Max", relative, g.const([0])), g.op("Sub", columns, g.const([1])))
        of_tree = g.op("And", self._columns(tree_mask, column), inside)
        before = g.op("Less", relative, g.const([0]))
        if self.window is not None:
            before = g.op("And", before, g.op("GreaterOrEqual", relative, g.const([-self.window])))
        return g.op("Or", of_tree, before)

    def _columns(self, tree_mask: str, column: str) -> str:
        """The chosen columns of ``tree_mask``."""
        return self.g.op("Gather", tree_mask, column, axis=1)

    def _layer(self, layer: int, normed: str, residual: str, out: str | None = None) -> str:
        """One decoder layer. ``normed``: input of the attention. ``residual`` [n, H]: the attention's output is added to it."""
        g = self.g
        hidden = g.op("Add", residual, self._attention(layer, normed))
        normed = self._norm(hidden, f"model.layers.{layer}.post_attention_layernorm.weight")
        gate_up = self._linear(layer, "gate_up", normed)
        gate, up = g.ops("Split", gate_up, outs=(None, None), axis=1, num_outputs=2)
        activated = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
        return g.op("Add", hidden, self._linear(layer, "down", self._spread(activated)), out=out)

    def _spread(self, activated: str) -> str:
        """The inputs of `down` times the Hadamard matrix that its weights were multiplied by."""
        g, size = self.g, self.arch.spread
        if size == 1:
            return activated
        matrix = g.op("Cast", g.const(hadamard(size), np.float32), to=self.precision.compute)
        blocks = g.op("MatMul", g.op("Reshape", activated, g.const([-1, size])), matrix)
        return g.op("Reshape", blocks, g.const([-1, self.arch.intermediate]))

    def _attention(self, layer: int, normed: str) -> str:
        g, arch = self.g, self.arch
        joined = self._linear(layer, "qkv", normed)
        query, key, value = self._heads(layer, joined)
        keys = self._cached(layer, "key", key, (self.batch, arch.kv_heads), arch.head_dim)
        values = self._cached(layer, "value", value, *self._value_form())
        attended = g.op("Reshape", self._attend(query, keys, values), g.const([-1, arch.heads * arch.head_dim]))
        return self._linear(layer, "o", self._unpadded(attended))

    def _unpadded(self, attended: str) -> str:
        """The pass's rows of the attention's output."""
        return attended

    def _heads(self, layer: int, joined: str) -> tuple[str, str, str]:
        """Split the joined QKV product into rotated queries, rotated keys, and values, each [1, heads, n, D]."""
        g, arch = self.g, self.arch
        by_head = g.op("Transpose", self._by_head(joined, arch.heads + 2 * arch.kv_heads), perm=[0, 2, 1, 3])
        query, key, value = g.ops("Split", by_head, g.const([arch.heads, arch.kv_heads, arch.kv_heads]), outs=(None,) * 3, axis=1)
        return *self._positioned(layer, query, key), value

    def _by_head(self, joined: str, heads: int) -> str:
        """The joined QKV product as [1, n, heads, D]."""
        return self.g.op("Reshape", joined, self.g.const([1, -1, heads, self.arch.head_dim]))

    def _positioned(self, layer: int, query: str, key: str) -> tuple[str, str]:
        """Apply the norms of queries and keys, if the model has them, and the rotary embedding. Both are [1, heads, n, D]."""
        if self.arch.qk_norm:
            query = self._norm(query, f"model.layers.{layer}.self_attn.q_norm.weight", self.arch.head_dim)
            key = self._norm(key, f"model.layers.{layer}.self_attn.k_norm.weight", self.arch.head_dim)
        return self._turned(query), self._turned(key)

    def _turned(self, heads: str) -> str:
        return self.g.op("RotaryEmbedding", heads, *self.rope, self.positions)

    def _value_form(self) -> tuple[tuple[int | str, int], int]:
        """Sizes of the value cache: its dimensions before the slots, and the one after them."""
        return (self.batch, self.arch.kv_heads), self.arch.head_dim

    def _attend(self, query: str, keys: str, values: str) -> str:
        """Attention output, [1, n, heads, D]."""
        if self.static and not builds_attention(self.arch.head_dim):
            return plain_attention(self.g, self.arch, self.precision.compute, query, keys, values, self.mask)
        attended = self.g.op("Attention", query, keys, values, self.mask, scale=self.arch.head_dim**-0.5)
        return self.g.op("Transpose", attended, perm=[0, 2, 1, 3])

    def _cached(self, layer: int, kind: str, update: str, heads: tuple[int | str, int], width: int) -> str:
        """Write the new rows [*heads, n, width] into the cache in place, and return the cache with its `span` slots.

        TensorScatter must be directly between a graph input and a graph output, or the cache is copied.
        """
        g = self.g
        past, present = self._cache(layer, kind, heads, width)
        write = self.write if kind == "key" else self.value_write
        g.op("TensorScatter", past, update, write, out=present, axis=-2, mode="linear")
        return g.op("Slice", present, g.const([0]), self.span, g.const([2])) if self.static else present

    def _cache(self, layer: int, kind: str, heads: tuple[int | str, int], width: int) -> tuple[str, str]:
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
        biased = self.arch.output_bias if matrix == "o" else matrix in ("qkv", "q", "kv") and self.arch.qkv_bias
        bias = [self._computable(self._stored(f"{stem}.bias", (outputs,), [f"{name}.bias" for name in names]))] if biased else []
        weights = [f"{name}.weight" for name in names]
        return self._product(x, stem, (outputs, inputs), weights, self.precision.matrix, *bias)

    def _matrix(self, layer: int, matrix: str) -> tuple[tuple[str, ...], int, int]:
        """Checkpoint tensors, number of outputs and number of inputs of a matrix."""
        return self.arch.linears[matrix]
