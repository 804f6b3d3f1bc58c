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

In the target, a chunk of a prompt has an attention group of its own, so that its many rows do not widen the columns of all lanes. It is a
lane that `queries`, `owner`, `pages` and `counted` leave out:

chunk[c] int64              row in column j; c is 0 in a pass without a chunk, else 2 or more
chunk_pages[q] int64        pages of the chunk's lane, in the order of its slots
chunk_attend[q,c,PAGE_SLOTS] bool
flat[N]                     B * n + column for a row of the chunk

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

    reads_chunks = False  # whether a chunk has a group of its own

    def _lane_inputs(self) -> None:
        g, heads, each = self.g, self.arch.heads, self.arch.heads // self.arch.kv_heads
        self.places = g.input("places", INT64, ["N", self.arch.kv_heads, 3])
        queries = g.input("queries", INT64, ["P", "n"])
        attend = g.input("attend", BOOL, ["P", "n", PAGE_SLOTS])
        self.owner = g.input("owner", INT64, ["P"])
        self.pages = g.input("pages", INT64, ["B", "m"])
        self.counted = g.input("counted", FLOAT, ["B", 2, "m"])
        flat = g.input("flat", INT64, ["N"])

        columns, lanes = g.op("Shape", queries, start=1, end=2), g.op("Shape", self.pages, end=1)
        lane, column = g.op("Div", flat, columns), g.op("Mod", flat, columns)
        of_chunk = g.op("Sub", flat, g.op("Mul", lanes, columns))  # column of a row of the chunk; negative for other rows
        if each == 1:  # one more column, so that a head has two rows at least
            first = g.const([0]), g.const([1]), g.const([1])
            queries = g.op("Concat", queries, g.op("Slice", queries, *first), axis=1)
            attend = g.op("Concat", attend, g.op("Slice", attend, *first), axis=1)
            columns = g.op("Add", columns, g.const([1]))
        self.mask, self.query_places = self._mask(attend), self._query_places(queries)
        self.ones = g.op("Expand", g.const(1, np.float32), g.const([PAGE_SLOTS, _ONES]))
        heads_of_lanes = g.const([2 * heads])  # twice, for both rows of `counted`
        self.result_places = self._result_places(g.op("Mul", lane, heads_of_lanes), columns, column)
        if self.reads_chunks:
            before = g.op("Mul", g.op("Mul", lanes, columns), heads_of_lanes)
            in_lanes = g.op("Unsqueeze", g.op("Less", of_chunk, g.const([0])), g.const([1]))
            self.result_places = g.op("Where", in_lanes, self.result_places, g.op("Add", before, self._chunk_inputs(of_chunk)))

    def _mask(self, attend: str) -> str:
        """Added to scores [pages, Hkv, heads of a key x columns, PAGE_SLOTS]; from ``attend`` [pages, columns, PAGE_SLOTS]."""
        g, each = self.g, self.arch.heads // self.arch.kv_heads
        hidden = g.op("Where", attend, g.const(0, np.float32), g.const(-np.inf, np.float32))
        return g.op("Unsqueeze", g.op("Concat", *[hidden] * each, axis=1) if each > 1 else hidden, g.const([1]))

    def _query_places(self, queries: str) -> str:
        """Places of the queries [pages, columns] among [N, heads or more, D]: [pages, Hkv, heads of a key x columns, 2]."""
        g, kv_heads, each = self.g, self.arch.kv_heads, self.arch.heads // self.arch.kv_heads
        heads = g.const(np.arange(self.arch.heads).reshape(1, kv_heads, each, 1))
        columns = g.op("Mul", g.op("Shape", queries, start=1), g.const([each]))
        shape = g.op("Concat", g.op("Shape", queries, end=1), g.const([kv_heads]), columns, g.const([2]), axis=0)
        return g.op("Reshape", self._indices(g.op("Unsqueeze", queries, g.const([1, 2])), heads), shape, allowzero=1)

    def _result_places(self, heads_before: str, columns: str, column: str) -> str:
        """Places of results [rows, heads] among [heads x columns, D + _ONES], behind ``heads_before`` [rows or 1] times ``columns``."""
        g = self.g
        head = g.op("Add", g.op("Unsqueeze", heads_before, g.const([1])), g.const(np.arange(self.arch.heads).reshape(1, -1)))
        return g.op("Add", g.op("Mul", head, columns), g.op("Unsqueeze", column, g.const([1])))

    def _chunk_inputs(self, column: str) -> str:
        """Declare the inputs of the chunk's group. Returns the places of its results, for rows in ``column``."""
        g, width = self.g, self.arch.head_dim + _ONES
        chunk, self.chunk_pages = g.input("chunk", INT64, ["c"]), g.input("chunk_pages", INT64, ["q"])
        self.chunk_mask = self._mask(g.input("chunk_attend", BOOL, ["q", "c", PAGE_SLOTS]))
        self.chunk_places = self._query_places(g.op("Unsqueeze", chunk, g.const([0])))
        columns, pages = g.op("Shape", chunk), g.op("Shape", self.chunk_pages)
        self.chunk_sums = g.op("Concat", pages, g.op("Mul", columns, g.const([self.arch.heads * width])), axis=0)
        self.chunk_totals = g.op("Concat", g.op("Mul", columns, g.const([2 * self.arch.heads])), g.const([width]), axis=0)
        self.chunk_counted = g.op("Expand", g.const(1, np.float32), g.op("Concat", g.const([2]), pages, axis=0))
        return self._result_places(g.const([0]), columns, column)

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
        totals = g.op("Reshape", g.op("MatMul", self.counted, of_lanes), g.const([-1, width + _ONES]))
        if self.reads_chunks:
            totals = g.op("Concat", totals, self._of_chunk(query, keys, values), axis=0)
        totals = g.op("Gather", totals, self.result_places)
        context, weight, _ = g.ops("Split", totals, g.const([width, 1, _ONES - 1]), outs=(None,) * 3, axis=2)
        attended = g.op("Reshape", g.op("Div", context, weight), g.const([-1, arch.heads * width]))
        return self._linear(layer, "o", attended)

    def _of_chunk(self, query: str, keys: str, values: str) -> str:
        """The totals of the chunk's group, summed in the same order as those of the lanes: [2 x heads x c, D + _ONES]."""
        g, width = self.g, self.arch.head_dim
        keys, values = g.op("Gather", keys, self.chunk_pages), g.op("Gather", values, self.chunk_pages)
        queries = g.op("GatherND", query, self.chunk_places)
        scores = g.op("FusedMatMul", queries, keys, transB=1, alpha=width**-0.5, domain="com.microsoft")
        scores = g.op("Add", scores, self.chunk_mask)
        peak = g.op("ReduceMax", g.op("ReduceMax", scores, g.const([-1])), g.const([0]))
        weights = g.op("Exp", g.op("Sub", scores, peak))
        sums = g.op("Concat", g.op("MatMul", weights, values), g.op("MatMul", weights, self.ones), axis=3)
        totals = g.op("MatMul", self.chunk_counted, g.op("Reshape", sums, self.chunk_sums, allowzero=1))
        return g.op("Reshape", totals, self.chunk_totals, allowzero=1)

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
