"""Attention over a cache that has one page for each lane, for TensorRT: rows are padded to B equally long lanes inside attention only.

TensorRT writes a cache in place only as consecutive slots of each batch row (KVCacheUpdate). So a page is a whole lane here, with
`capacity` slots. A pass sees B consecutive pages. Inputs that target and draft have alike, for N rows:

pad[B,n] int64              row in column j of a page; a lane with fewer rows repeats one of its own, and a page without rows has any row
flat[N] int64               page * n + column of each row
tree_mask[B,n,w] bool       slots from ``past`` on to which that row attends; w = n in the target
past[B] int64               committed slots of each page
write[B] int64              slot of column 0; only in the draft, in the target it is ``past``
slots[span] int64           0, 1, ..., span - 1
past.i.key / past.i.value [B,Hkv,capacity,D]

All columns of all pages are written, so ``write`` + n is at most ``capacity``, and a column that repeats a row must lie behind what is
committed. A page without rows gets zeros, not the numbers of another lane's row: they could be NaN, and 0 * NaN is NaN, even in a slot to
which no row attends.
"""

from __future__ import annotations

import numpy as np

from ..builder import BOOL, INT64
from .lane_attention import LaneAttention


class PaddedAttention(LaneAttention):
    """Writes the attention of a LayerWriter over whole lanes."""

    batch = "B"
    columns = "n"  # of tree_mask. Only "w" has an input ``write``

    def _lane_inputs(self) -> None:
        g = self.g
        self.pad, self.flat = g.input("pad", INT64, ["B", "n"]), g.input("flat", INT64, ["N"])
        tree_mask = g.input("tree_mask", BOOL, ["B", "n", self.columns])
        past = self.write = g.input("past", INT64, ["B"])
        if self.columns == "w":
            self.write = g.input("write", INT64, ["B"])
        self.value_write, slots = self.write, g.input("slots", INT64, ["span"])

        page = g.op("Div", g.op("Gather", self.flat, self.pad), g.op("Shape", self.pad, start=1))
        pages = g.op("Range", g.const(0), g.op("Squeeze", g.op("Shape", self.pad, end=1)), g.const(1))
        own = g.op("Equal", page, g.op("Unsqueeze", pages, g.const([1])))
        self.own = g.op("Unsqueeze", own, g.const([2]))  # [B,n,1]: whether the row is the page's
        self.zero = g.op("Cast", g.const(0, np.float32), to=self.precision.compute)
        self.positions = g.op("Gather", g.op("Squeeze", self.positions, g.const([0])), self.pad)
        self.past = g.op("Unsqueeze", past, g.const([1, 2]))
        self.mask = g.op("Unsqueeze", self._attended(tree_mask, slots), g.const([1]))

    def _columns(self, tree_mask: str, column: str) -> str:
        """tree_mask [B,n,w] and column [B,1,span] -> [B,n,span]."""
        turned, column = (self.g.op("Transpose", each, perm=[0, 2, 1]) for each in (tree_mask, column))
        return self.g.op("Transpose", self.g.op("GatherND", turned, column, batch_dims=1), perm=[0, 2, 1])

    def _by_head(self, joined: str, heads: int) -> str:
        """The joined QKV product [N, ...] as [B, n, heads, D]."""
        g = self.g
        padded = g.op("Where", self.own, g.op("Gather", joined, self.pad), self.zero)
        return g.op("Reshape", padded, g.const([0, 0, heads, self.arch.head_dim]))

    def _unpadded(self, attended: str) -> str:
        return self.g.op("Gather", attended, self.flat)
