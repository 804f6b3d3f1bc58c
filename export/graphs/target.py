"""The target graph, written node by node (design.md section 4).

inputs   tokens[1,n] depth[1,n] int64 · tree_mask[n,n] bool · past[1] int64 · slots[span] int64 · rows[r] int64
         past.i.key / past.i.value [1,Hkv,span,D]; in the ordered form values are [D/16,Hkv,span,16]
outputs  next_token[1,r] int64 · logits[1,r,V] float32 · features[1,n,3H] · present.i.key / present.i.value

Row j of a pass writes its key and value to slot past+j and stands at position past+depth[j]. It attends to every committed
slot (< past) and, among the rows of this pass, to those tree_mask[j] names. `slots` is 0, 1, ..., span - 1; the caller lays the cache out
for the slots in use, so that cost follows them and nothing is sliced. In the static form, TensorRT's, the cache tensors have all `capacity`
slots instead, and attention reads a slice of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..checkpoints.arch import Arch
from ..checkpoints.safetensors import Weights
from .builder import BOOL, FLOAT, INT4, INT8, INT64
from .embedding import Embedding
from .int4_offsets import quantize_widened, wide, widened
from .int8_matmul import FINE, integer_product
from .kept_integers import pieces
from .layers import LayerWriter
from .precision import Precision, is_quantized
from .stored_products import StoredProducts
from .weights import WeightCount, quantize_outputs

EMBEDDING = "model.embed_tokens.weight"
ORDERED_WIDTH = 16
"""Columns of a matrix that ONNX Runtime's products (MLAS) sum in blocks of 1,024 rows; with 64 columns only 256, and more threads
than matrices would split them."""


class TargetWriter(LayerWriter):
    """Builds the target's graph. ``captured``: layers whose incoming residual stream goes into ``features``; the number of layers
    stands for what leaves the last. ``keep_integers``: of a quantized checkpoint, where the graph can hold them."""

    def __init__(
        self,
        arch: Arch,
        source: Weights | None,
        precision: Precision,
        capacity: int,
        weights: WeightCount,
        captured: tuple[int, ...] | None = None,
        static: bool = False,
        keep_integers: bool = True,
    ) -> None:
        super().__init__("target", arch, source, precision, capacity, weights, static)
        self.keep_integers = keep_integers
        self.captured = captured or arch.captured
        self.ordered = is_ordered(precision) and not static
        self._blanks: dict[int, str] = {}
        self.tied: tuple[str, str] | None = None  # integers and scales of a head that is the embedding too

    def build(self) -> Iterator[int]:
        """Write the whole graph; yields the number of finished layers, for progress."""
        g, arch = self.g, self.arch
        tokens = g.input("tokens", INT64, [1, "n"])
        depth = g.input("depth", INT64, [1, "n"])
        tree_mask = g.input("tree_mask", BOOL, ["n", "n"])
        self.past = self.write = self.value_write = g.input("past", INT64, [1])
        slots = g.input("slots", INT64, ["span"])
        rows = g.input("rows", INT64, ["r"])
        self.positions = g.op("Add", depth, self.past)
        self.mask = self._attention_mask(tree_mask, slots)
        self.rope = self._rotary()
        self._prepare_attention(slots)

        self.embedding = self._embedding()
        hidden = self.embedding.rows(g, tokens, self.precision.compute, out=stream(0))
        streams = [hidden]
        for layer in range(arch.layers):
            normed = self._norm(hidden, f"model.layers.{layer}.input_layernorm.weight")
            hidden = self._layer(layer, normed, hidden, out=stream(layer + 1))
            streams.append(hidden)
            yield layer + 1
        features = g.op("Concat", *(streams[layer] for layer in self.captured), axis=1)
        g.op("Unsqueeze", features, g.const([0]), out="features")
        self._head(g.op("Gather", hidden, rows))
        g.output("next_token", INT64, [1, "r"])
        g.output("logits", FLOAT, [1, "r", arch.vocab])
        g.output("features", self.precision.compute, [1, "n", len(self.captured) * arch.hidden])
        self._declare_presents()

    def _embedding(self) -> Embedding:
        """Add the table. A tied head of integers is the table too: a row of one is a column of the other, with the same scale."""
        arch = self.arch
        if arch.tied_head and self.ordered and is_quantized(self.precision.head, arch.hidden):
            self.tied = self._integers(EMBEDDING, (arch.vocab, arch.hidden), [EMBEDDING], INT8, _quantize_fine, (arch.vocab,))
            table, scale = map(self.g.tensor, self.tied)
            return Embedding(table, scale, 1 / FINE)
        return self._table(EMBEDDING, (arch.vocab, arch.hidden))

    def _prepare_attention(self, slots: str) -> None:
        """What all layers' attention reads beside mask and rotary tables."""
        if self.ordered:
            g = self.g
            self.value_write = g.op("Expand", self.past, g.const([self._value_form()[0][0]]))
            hidden = g.op("Where", self.mask, g.const(0, np.float32), g.const(-np.inf, np.float32))
            self.mask = g.op("Concat", *[hidden] * self._queries_of_a_key(), axis=2)
            shape = g.op("Concat", g.const([1, 1]), g.op("Shape", slots), g.const([self._value_form()[1]]), axis=0)
            self.ones = g.op("Expand", g.const(1, np.float32), shape)

    def _product(self, x: str, stem: str, shape: tuple[int, int], parts: list[str], kind: int | None, *bias: str) -> str:
        found = pieces(self.source, parts, kind, self.static) if self.keep_integers and self.source else []
        if self.source is None or not any(piece.form for piece in found):
            return self._rounded_product(x, stem, shape, parts, kind, *bias)
        stored, products = StoredProducts(self.g, self.weights, self.source), []
        for index, piece in enumerate(found):
            name = stem if len(found) == 1 else f"{stem}.{index}"
            if piece.form:
                products.append(stored.product(x, name, piece, shape[1], self.static))
            else:
                products.append(self._rounded_product(x, name, (piece.outputs, shape[1]), list(piece.parts), kind))
        joined = self.g.op("Concat", *products, axis=1) if len(products) > 1 else products[0]
        return self.g.op("Add", joined, *bias) if bias else joined

    def _rounded_product(self, x: str, stem: str, shape: tuple[int, int], parts: list[str], kind: int | None, *bias: str) -> str:
        """The product with a matrix that is rounded here, from float32."""
        if not self.ordered or not is_quantized(kind, shape[1]):
            return super()._product(x, stem, shape, parts, kind, *bias)
        if kind == INT4:
            x = wide(self.g, x, shape[1], self._blank)
            product = self._blocks_product(x, stem, shape, parts, 4, quantize_widened, widened(shape[1]))
        else:
            weight, scale = self._integers(stem, shape, parts, INT8, _quantize_fine, shape[:1])
            product = integer_product(self.g, x, weight, scale)
        return self.g.op("Add", product, *bias) if bias else product

    def _blank(self, width: int) -> str:
        """Zeros [n, width]; made where they are first needed."""
        if width not in self._blanks:
            shape = self.g.op("Concat", self.g.op("Shape", "tokens", start=1), self.g.const([width]), axis=0)
            self._blanks[width] = self.g.op("Expand", self.g.const(0, np.float32), shape)
        return self._blanks[width]

    def _heads(self, layer: int, joined: str) -> tuple[str, str, str]:
        if not self.ordered:
            return super()._heads(layer, joined)
        g, arch = self.g, self.arch
        (parts, kv_heads), width = self._value_form()
        sizes = [(arch.heads + kv_heads) * arch.head_dim, kv_heads * arch.head_dim]
        attending, value = g.ops("Split", joined, g.const(sizes), outs=(None, None), axis=1)
        by_head = g.op("Transpose", g.op("Reshape", attending, g.const([1, -1, arch.heads + kv_heads, arch.head_dim])), perm=[0, 2, 1, 3])
        value = g.op("Transpose", g.op("Reshape", value, g.const([-1, kv_heads, parts, width])), perm=[2, 1, 0, 3])
        if not arch.qk_norm:  # both turned by one node
            by_head = self._turned(by_head)
        query, key = g.ops("Split", by_head, g.const([arch.heads, kv_heads]), outs=(None, None), axis=1)
        return *(self._positioned(layer, query, key) if arch.qk_norm else (query, key)), value

    def _value_form(self) -> tuple[tuple[int, int], int]:
        if not self.ordered:
            return super()._value_form()
        width = math.gcd(self.arch.head_dim, ORDERED_WIDTH)
        return (self.arch.head_dim // width, self.arch.kv_heads), width

    def _attend(self, query: str, keys: str, values: str) -> str:
        return self._ordered_attention(query, keys, values) if self.ordered else super()._attend(query, keys, values)

    def _queries_of_a_key(self) -> int:
        """Rows of a key head's matrix for each row of the pass: at least two, because a single one takes another kernel."""
        return max(2, self.arch.heads // self.arch.kv_heads)

    def _ordered_attention(self, query: str, keys: str, values: str) -> str:
        """Attention whose result does not depend on where in the cache the attended slots lie, nor on how many rows a pass has.

        A draft tree leaves gaps between a node's ancestors. ONNX Runtime's Attention then sums over slots in another order than in plain
        decoding, which makes a difference of 1e-7, and products with integer activations round that up to 1e-2 and more, which changes
        tokens: measured in docs/design.md, section 7. Its float32 matrix products add up one slot after the other, and a slot of weight
        zero changes nothing, so here both sums over slots are such products: the values', and the weights' with a matrix of ones. They
        go in order through blocks of slots (runtime.decoding.target.SUM_BLOCK), that long where a matrix has few columns:
        so the cache holds values in columns of ORDERED_WIDTH.
        """
        g, arch = self.g, self.arch
        each, ((parts, _), width) = self._queries_of_a_key(), self._value_form()
        if arch.heads == arch.kv_heads:
            query = g.op("Concat", query, query, axis=2)
        grouped = g.op("Reshape", query, g.const([1, arch.kv_heads, -1, arch.head_dim]))
        products = g.op("MatMul", grouped, g.op("Transpose", keys, perm=[0, 1, 3, 2]))
        masked = g.op("Add", g.op("Mul", products, g.const(arch.head_dim**-0.5, np.float32)), self.mask)
        weights = g.op("Exp", g.op("Sub", masked, g.op("ReduceMax", masked, g.const([-1]))))
        context = g.op("Div", g.op("MatMul", weights, values), g.op("MatMul", weights, self.ones))
        split = g.op("Reshape", context, g.const([parts, arch.kv_heads, each, -1, width]))
        if arch.heads == arch.kv_heads:
            split = g.op("Slice", split, g.const([0]), g.const([1]), g.const([2]))
        return g.op("Transpose", split, perm=[3, 1, 2, 0, 4])

    def _head(self, hidden: str) -> None:
        g, arch, precision = self.g, self.arch, self.precision
        normed = self._norm(hidden, "model.norm.weight")
        if self.tied:
            logits = integer_product(g, normed, *self.tied)
        elif arch.tied_head and not is_quantized(precision.head, arch.hidden):
            logits = g.op("Gemm", normed, self._computable(self.embedding.table.name), transB=1)
        else:
            name = EMBEDDING if arch.tied_head else "lm_head.weight"
            logits = self._product(normed, "head", (arch.vocab, arch.hidden), [name], precision.head)
        if precision.compute != FLOAT:
            logits = g.op("Cast", logits, to=FLOAT)
        g.op("Unsqueeze", logits, g.const([0]), out="logits")
        g.op("ArgMax", "logits", out="next_token", axis=-1, keepdims=0)


def is_ordered(precision: Precision) -> bool:
    """Whether weights are integers in a graph for the CPU, whose attention then does not depend on slots."""
    return precision.matrix is not None and precision.compute == FLOAT


def _quantize_fine(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 values and the scales that `integer_product` takes."""
    values, scale = quantize_outputs(weight)
    return values, scale * FINE


def stream(layer: int) -> str:
    """Name of the residual stream [n, H] that enters ``layer``."""
    return f"stream.{layer}"
