"""The graph `draft` of a DFlash draft (arXiv 2602.06036; dflash/model.py of z-lab/dflash), which guesses a block of tokens in one pass.

inputs   tokens[1,m] int64 (the block) · hidden[1,n,H] (of committed tokens, from `fuse`) · past[1] int64 · slots[span] int64
         rows[r] int64 (of the block) · beam[k] (only its length counts) · past.i.key / past.i.value [1,Hkv,span,D]
outputs  log_probs[r,k] float32 · candidates[r,k] int64 (the target's ids) · present.i.key / .value

Committed tokens have keys and values only, which every layer makes of the same ``hidden``. They go to slots past to past + n - 1, those of
the block behind them, and a slot is also a position. The block's rows see all committed tokens, and each other.
"""

from __future__ import annotations

from ..checkpoints.draft_checkpoint import TURN
from .builder import FLOAT, INT64
from .draft import DraftWriter


class DFlashWriter(DraftWriter):
    """Writes the graph. ``draft.block`` must be set."""

    def build(self) -> None:
        """Write the whole graph."""
        g, size = self.g, self.arch.hidden
        tokens, hidden = g.input("tokens", INT64, [1, "m"]), g.input("hidden", self.precision.compute, [1, "n", size])
        self.past = self.write = self.value_write = g.input("past", INT64, [1])
        slots = g.input("slots", INT64, ["span"])
        rows, beam = g.input("rows", INT64, ["r"]), g.input("beam", INT64, ["k"])
        self.context = g.op("Reshape", hidden, g.const([-1, size]))
        self.positions = self._places(tokens, hidden, slots)
        self.rope = self._rotary()
        hidden = self._embedded(tokens)
        if self.draft.turned:
            hidden = g.op("Gemm", hidden, self._computable(self._stored(TURN, (size, size), [TURN])), transB=1)
        for layer in range(self.arch.layers):
            hidden = self._layer(layer, self._norm(hidden, f"model.layers.{layer}.input_layernorm.weight"), hidden)
        self._candidates(g.op("Gather", self._norm(hidden, "model.norm.weight"), rows), beam)
        g.output("log_probs", FLOAT, ["r", "k"])
        g.output("candidates", INT64, ["r", "k"])
        self._declare_presents()

    def _places(self, tokens: str, hidden: str, slots: str) -> str:
        """Positions [1, n + m] of the pass's rows. Also sets what the layers' masks are made of."""
        g = self.g
        flat = g.const([0])
        counts = [g.op("Shape", each, start=1, end=2) for each in (hidden, tokens)]
        end = g.op("Add", self.past, g.op("Add", *counts))
        places = g.op("Range", *(g.op("Squeeze", each) for each in (self.past, end)), g.const(1))
        self.block_positions = g.op("Unsqueeze", g.op("Slice", places, counts[0], g.op("Shape", places)), flat)
        self._distance = g.op("Sub", g.op("Transpose", self.block_positions, perm=[1, 0]), slots)  # [m, span], from a row back to a slot
        self._used = g.op("Less", slots, end)
        self._masks: dict[tuple[int | None, bool], str] = {}
        return g.op("Unsqueeze", places, flat)

    def _seen(self, window: int | None, causal: bool) -> str:
        """Mask [1, 1, m, span] of a layer's attention."""
        g = self.g
        if (window, causal) not in self._masks:
            most = [size for size in (window, self.window) if size is not None]
            seen = g.op("And", self._used, g.op("GreaterOrEqual", self._distance, g.const(0 if causal else -self.capacity)))
            for size in most:
                seen = g.op("And", seen, g.op("Less", g.op("Abs", self._distance), g.const(size)))
            self._masks[window, causal] = g.op("Unsqueeze", seen, g.const([0, 1]))
        return self._masks[window, causal]

    def _attention(self, layer: int, normed: str) -> str:
        g, arch, block = self.g, self.arch, self.draft.block
        assert block is not None
        self.mask = self._seen(block.windows[layer], block.causal[layer])
        query = self._by_rows_of_heads(self._linear(layer, "q", normed), arch.heads)
        joined = self._linear(layer, "kv", g.op("Concat", self.context, normed, axis=0))
        both = self._by_rows_of_heads(joined, 2 * arch.kv_heads)
        key, value = g.ops("Split", both, g.const([arch.kv_heads, arch.kv_heads]), outs=(None, None), axis=1)
        if arch.qk_norm:
            query, key = (
                self._norm(each, f"model.layers.{layer}.self_attn.{part}_norm.weight", arch.head_dim)
                for part, each in (("q", query), ("k", key))
            )
        query = g.op("RotaryEmbedding", query, *self.rope, self.block_positions)
        keys = self._cached(layer, "key", self._turned(key), (1, arch.kv_heads), arch.head_dim)
        values = self._cached(layer, "value", value, *self._value_form())
        attended = g.op("Reshape", self._attend(query, keys, values), g.const([-1, arch.heads * arch.head_dim]))
        return self._linear(layer, "o", attended)

    def _by_rows_of_heads(self, product: str, heads: int) -> str:
        """[rows, heads * D] as [1, heads, rows, D]."""
        return self.g.op("Transpose", self._by_head(product, heads), perm=[0, 2, 1, 3])

    def _matrix(self, layer: int, matrix: str) -> tuple[tuple[str, ...], int, int]:
        q, kv, size = self.arch.heads * self.arch.head_dim, 2 * self.arch.kv_heads * self.arch.head_dim, self.arch.hidden
        parts = {"q": (("self_attn.q_proj",), q, size), "kv": (("self_attn.k_proj", "self_attn.v_proj"), kv, size)}
        return parts.get(matrix) or self.arch.linears[matrix]
