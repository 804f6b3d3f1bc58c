"""Attention over a cache that is divided into pages, so that one pass computes rows of several requests (lanes).

A page holds PAGE_SLOTS consecutive slots of one lane, for all heads. A lane has as many pages as its own length needs, anywhere in the
cache. Inputs that target and draft have alike, for N rows, B lanes and P pages:

places[N,Hkv,3] int64       where each row's key and value are written: page, head, slot in the page
queries[P,n] int64          row in column j of the page's lane; a lane with fewer rows repeats one of its own rows
attend[P,n,PAGE_SLOTS] bool slots of the page to which that row attends
owner[P] int64              lane of each page; a page of no lane of the pass has any owner, and nobody attends to its slots
pages[B,m] int64            pages of each lane in the order of its slots, then the lane's first page again
counted[B,2,m] float32      1 for the lane's pages, 0 for the repeated ones; both rows are equal
flat[N] int64               lane * n + column of each row
past.i.key / past.i.value [P,Hkv,PAGE_SLOTS,D]

The bits of a row's result depend neither on other lanes nor on the number of rows. ONNX Runtime's matrix products (MLAS) add up to
PAGE_SLOTS terms one after the other, whatever the number of columns and threads, and a slot of weight zero changes nothing. A page's sum is
therefore the same whichever slots lie between those that a row attends to, and one more product adds the pages in order. Matrices with a
single row take another kernel, so every product has at least two rows.
"""

from __future__ import annotations

import numpy as np

from runtime.manifest.graphs import PAGE_SLOTS

from ..builder import BOOL, FLOAT, INT64
from .lane_attention import LaneAttention

_ONES = 16  # columns of the matrix that sums the weights; the smallest number that MLAS computes at once


class PagedAttention(LaneAttention):
    """Writes the attention of a LayerWriter over pages."""

    def _lane_inputs(self) -> None:
        g, heads, each = self.g, self.arch.heads, self.arch.heads // self.arch.kv_heads
        self.places = g.input("places", INT64, ["N", self.arch.kv_heads, 3])
        queries = g.input("queries", INT64, ["P", "n"])
        attend = g.input("attend", BOOL, ["P", "n", PAGE_SLOTS])
        self.owner = g.input("owner", INT64, ["P"])
        self.pages = g.input("pages", INT64, ["B", "m"])
        self.counted = g.input("counted", FLOAT, ["B", 2, "m"])
        flat = g.input("flat", INT64, ["N"])

        columns = g.op("Shape", queries, start=1, end=2)
        lane, column = g.op("Div", flat, columns), g.op("Mod", flat, columns)
        if each == 1:  # one more column, so that a head has two rows at least
            first = g.const([0]), g.const([1]), g.const([1])
            queries = g.op("Concat", queries, g.op("Slice", queries, *first), axis=1)
            attend = g.op("Concat", attend, g.op("Slice", attend, *first), axis=1)
            columns = g.op("Add", columns, g.const([1]))
        hidden = g.op("Where", attend, g.const(0, np.float32), g.const(-np.inf, np.float32))
        mask = g.op("Concat", *[hidden] * each, axis=1) if each > 1 else hidden
        self.mask = g.op("Unsqueeze", mask, g.const([1]))
        self.ones = g.op("Expand", g.const(1, np.float32), g.const([PAGE_SLOTS, _ONES]))
        # Places of the queries among [N, heads or more, D], and of the rows' results among [2 B, heads, n, D + _ONES].
        of_keys, of_rows = np.arange(heads).reshape(1, -1, each, 1), np.arange(heads).reshape(1, -1)
        places = self._indices(g.op("Unsqueeze", queries, g.const([1, 2])), g.const(of_keys))
        self.query_places = g.op("Reshape", places, g.const([0, self.arch.kv_heads, -1, 2]))
        lane = g.op("Unsqueeze", g.op("Mul", lane, g.const(2)), g.const([1]))
        self.result_places = self._indices(lane, g.const(of_rows), g.op("Unsqueeze", column, g.const([1])))
        self.result_shape = g.op("Concat", g.const([-1, heads]), columns, g.const([self.arch.head_dim + _ONES]), axis=0)

    def _indices(self, *parts: str) -> str:
        """Integers that are broadcast to one shape, side by side in a new last dimension, for GatherND."""
        g = self.g
        zero = g.const(0)
        for part in parts:
            zero = g.op("Mul", g.op("Add", zero, part), g.const(0))
        return g.op("Concat", *(g.op("Unsqueeze", g.op("Add", part, zero), g.const([-1])) for part in parts), axis=-1)

    def _attention(self, layer: int, normed: str) -> str:
        g, arch = self.g, self.arch
        width = arch.head_dim
        query, key, value = self._rows_by_head(layer, self._linear(layer, "qkv", normed))
        keys, values = self._written(layer, "key", key), self._written(layer, "value", value)
        queries = g.op("GatherND", query, self.query_places)
        scores = g.op("FusedMatMul", queries, keys, transB=1, alpha=width**-0.5, domain="com.microsoft")
        scores = g.op("Add", scores, self.mask)
        peak = g.op("ReduceMax", scores, g.const([-1]))
        peak = g.op("ReduceMax", g.op("Gather", peak, self.pages), g.const([1]), keepdims=0)
        weights = g.op("Exp", g.op("Sub", scores, g.op("Gather", peak, self.owner)))
        sums = g.op("Concat", g.op("MatMul", weights, values), g.op("MatMul", weights, self.ones), axis=3)
        of_lanes = g.op("Reshape", g.op("Gather", sums, self.pages), g.const([0, 0, -1]))
        totals = g.op("Reshape", g.op("MatMul", self.counted, of_lanes), self.result_shape)
        totals = g.op("GatherND", totals, self.result_places)
        context, weight, _ = g.ops("Split", totals, g.const([width, 1, _ONES - 1]), outs=(None,) * 3, axis=2)
        attended = g.op("Reshape", g.op("Div", context, weight), g.const([-1, arch.heads * width]))
        return self._linear(layer, "o", attended)

    def _rows_by_head(self, layer: int, joined: str) -> tuple[str, str, str]:
        """Split the joined QKV product [N, ...] into rotated heads of queries, perhaps followed by others, rotated heads of keys, and heads
        of values; each [N, heads, D]."""
        g, arch = self.g, self.arch
        heads, kv_heads = arch.heads, arch.kv_heads
        by_head = g.op("Reshape", joined, g.const([-1, heads + 2 * kv_heads, arch.head_dim]))
        if not arch.qk_norm:  # one node rotates both
            both, value = g.ops("Split", by_head, g.const([heads + kv_heads, kv_heads]), outs=(None, None), axis=1)
            both = self._rotated(both, heads + kv_heads)
            return both, g.op("Slice", both, g.const([heads]), g.const([heads + kv_heads]), g.const([1])), value
        query, key, value = g.ops("Split", by_head, g.const([heads, kv_heads, kv_heads]), outs=(None,) * 3, axis=1)
        query = self._norm(query, f"model.layers.{layer}.self_attn.q_norm.weight", arch.head_dim)
        key = self._norm(key, f"model.layers.{layer}.self_attn.k_norm.weight", arch.head_dim)
        return self._rotated(query, heads), self._rotated(key, kv_heads), value

    def _rotated(self, rows: str, heads: int) -> str:
        """Apply the rotary embedding to [N, heads, D]."""
        g, width = self.g, self.arch.head_dim
        joined = g.op("Reshape", rows, g.const([1, -1, heads * width]))
        return g.op("Reshape", g.op("RotaryEmbedding", joined, *self.rope, self.positions, num_heads=heads), g.const([-1, heads, width]))

    def _written(self, layer: int, kind: str, rows: str) -> str:
        """Write rows [N, kv_heads, D] into the pages in place, and return the pages.

        ScatterND must be directly between a graph input and a graph output, or the cache is copied.
        """
        g, arch = self.g, self.arch
        shape: list[int | str] = ["P", arch.kv_heads, PAGE_SLOTS, arch.head_dim]
        past, present = (f"{side}.{layer}.{kind}" for side in ("past", "present"))
        self._presents.append((present, self.precision.compute, shape))
        return g.op("ScatterND", g.input(past, self.precision.compute, shape), self.places, rows, out=present)
