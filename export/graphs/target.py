"""The target graph (design.md section 4).

inputs   tokens[1,n] depth[1,n] int64 · tree_mask[n,n] bool · past[1] int64 · slots[span] int64 · rows[r] int64
         past.i.key / past.i.value [1,Hkv,span,D]; with ordered sums values are [D/16,Hkv,span,16]
outputs  next_token[1,r] int64 · logits[1,r,V] float32 · features[1,n,3H] · present.i.key / present.i.value

Row j of a pass writes its key and value to slot past + j; its position is past + depth[j]. It attends to all committed slots (below past)
and to the rows of this pass that tree_mask[j] selects. `slots` is 0, 1, ..., span - 1. The caller allocates the cache for the slots in use,
so a pass does not pay for unused ones and slices nothing. In the static form, for TensorRT, the cache tensors have all `capacity` slots,
and attention reads a slice of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from runtime.backends.cpu.sums import ORDERED_WIDTH

from ..checkpoints.arch import Arch
from ..checkpoints.safetensors import Weights
from .builder import BOOL, FLOAT, FLOAT8, INT4, INT8, INT64, UINT8
from .embedding import Embedding
from .int4_offsets import quantize_widened, wide, widened
from .int8.products import integer_product
from .int8.rounding import TWO_DIGITS, Rounding
from .int8.row_products import row_product, weight_product
from .kept_integers import pieces
from .layers import LayerWriter
from .precision import Precision, is_quantized
from .stored_products import StoredProducts
from .weights import WeightCount, quantize_outputs

EMBEDDING = "model.embed_tokens.weight"


class TargetWriter(LayerWriter):
    """Writes the target's graph. ``captured``: the layers whose incoming residual streams are the output ``features``; the number of layers
    means the stream that leaves the last layer. ``keep_integers``: store a quantized checkpoint's integers where the graph can hold them.
    ``rounding``: of all others to eight bits.
    """

    graph_name = "target"
    row_axis = "n"  # name of the dimension of the pass's rows

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
        rounding: Rounding = TWO_DIGITS,
    ) -> None:
        super().__init__(self.graph_name, arch, source, precision, capacity, weights, static)
        self.keep_integers, self.rounding = keep_integers, rounding
        self.captured = captured or arch.captured
        self.ordered = is_ordered(precision) and not static
        self._blanks: dict[int, str] = {}
        self.tied: tuple[str, str] | None = None  # integers and scales of a head that is the embedding too

    def build(self) -> Iterator[int]:
        """Write the whole graph. Yields the number of finished layers, for progress reports."""
        g, arch = self.g, self.arch
        tokens, rows = self._inputs()
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
        g.output("features", self.precision.compute, [1, self.row_axis, len(self.captured) * arch.hidden])
        self._declare_presents()

    def _inputs(self) -> tuple[str, str]:
        """Declare the inputs but the caches, and write the nodes that all layers share. Returns the names of ``tokens`` and ``rows``."""
        g = self.g
        tokens = g.input("tokens", INT64, [1, self.row_axis])
        depth = g.input("depth", INT64, [1, self.row_axis])
        tree_mask = g.input("tree_mask", BOOL, [self.row_axis, self.row_axis])
        self.past = self.write = self.value_write = g.input("past", INT64, [1])
        slots = g.input("slots", INT64, ["span"])
        rows = g.input("rows", INT64, ["r"])
        self.positions = g.op("Add", depth, self.past)
        self.mask = self._attention_mask(tree_mask, slots)
        self.rope = self._rotary()
        self._prepare_attention(slots)
        return tokens, rows

    def _embedding(self) -> Embedding:
        """Add the table. A tied head of integers is the table too: a row of one is a column of the other, with the same scale."""
        arch = self.arch
        if arch.tied_head and self.ordered and is_quantized(self.precision.head, arch.hidden):
            self.tied = self._integers(EMBEDDING, (arch.vocab, arch.hidden), [EMBEDDING], INT8, quantize_outputs, (arch.vocab,))
            table, scale = map(self.g.tensor, self.tied)
            return Embedding(table, scale)
        return self._table(EMBEDDING, (arch.vocab, arch.hidden))

    def _prepare_attention(self, slots: str) -> None:
        """Nodes that the attention of all layers shares, beside the mask and the rotary tables."""
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
        eight_bits = self.static and kind in (INT8, FLOAT8)
        if not (self.ordered or eight_bits) or kind is None or not is_quantized(kind, shape[1]):
            return super()._product(x, stem, shape, parts, kind, *bias)
        if eight_bits:
            product = self._eight_bit_product(x, stem, shape, parts, kind)
        elif kind == INT4:
            x = wide(self.g, x, shape[1], self._blank)
            product = self._blocks_product(x, stem, shape, parts, 4, quantize_widened, widened(shape[1]))
        else:
            digits = self.rounding.digits
            stored = UINT8 if digits == 1 and self.rounding.unsigned else INT8
            weight, scale = self._integers(stem, shape, parts, stored, self.rounding.quantizer(stem), shape[:1], self.rounding.chunks)
            product = integer_product(self.g, x, weight, scale, digits)
        return self.g.op("Add", product, *bias) if bias else product

    def _eight_bit_product(self, x: str, stem: str, shape: tuple[int, int], parts: list[str], kind: int) -> str:
        """For TensorRT: the product with int8 or float8 weights that have one scale an output."""
        by_row, quantize = self.rounding.rounds_inputs(stem, kind), self.rounding.quantizer(stem, kind)
        scale_type = FLOAT if by_row else self.precision.compute
        if kind == FLOAT8:
            weight, scale = self._by_rows(stem, FLOAT8, shape, parts, quantize, scale_type)
        else:
            weight, scale = self._integers(stem, shape, parts, INT8, quantize, shape[:1], self.rounding.chunks, scale_type)
        return (row_product if by_row else weight_product)(self.g, x, weight, scale, kind)

    def _blank(self, width: int) -> str:
        """Zeros [n, width]. The node is written when it is first needed."""
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
        if not arch.qk_norm:  # one node rotates both
            by_head = self._turned(by_head)
        query, key = g.ops("Split", by_head, g.const([arch.heads, kv_heads]), outs=(None, None), axis=1)
        return *(self._positioned(layer, query, key) if arch.qk_norm else (query, key)), value

    def _value_form(self) -> tuple[tuple[int | str, int], int]:
        if not self.ordered:
            return super()._value_form()
        width = math.gcd(self.arch.head_dim, ORDERED_WIDTH)
        return (self.arch.head_dim // width, self.arch.kv_heads), width

    def _attend(self, query: str, keys: str, values: str) -> str:
        return self._ordered_attention(query, keys, values) if self.ordered else super()._attend(query, keys, values)

    def _queries_of_a_key(self) -> int:
        """Query rows per key head and row of the pass. At least two, because ONNX Runtime has another kernel for a single row."""
        return max(2, self.arch.heads // self.arch.kv_heads)

    def _ordered_attention(self, query: str, keys: str, values: str) -> str:
        """Attention with a result that depends neither on which cache slots are attended to nor on the number of rows in the pass.

        In a draft tree there are gaps between the slots of a node's ancestors. ONNX Runtime's Attention then sums over slots in another
        order than in plain decoding. The results differ by 1e-7, and rounding the activations to integers amplifies that to 1e-2 and more,
        which changes tokens (docs/design.md, section 7). ONNX Runtime's float32 matrix products add one slot after the other, and a slot
        with weight zero changes nothing. So both sums over slots are matrix products here: of the weights with the values, and of the
        weights with ones. Sums are in order within a block of slots (runtime.manifest.graphs.SUM_BLOCK). Blocks are that long only if a
        matrix has few columns, so the cache stores the values in matrices of ORDERED_WIDTH columns.
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
    """Whether a graph for the CPU needs attention with ordered sums: it does if its weights are integers."""
    return precision.matrix is not None and precision.compute == FLOAT


def stream(layer: int) -> str:
    """Name of the residual stream [n, H] that enters ``layer``."""
    return f"stream.{layer}"
