"""The draft's two graphs with weights (design.md section 4). `fuse` projects the target's features; `draft` is a pass of the draft's
layers.

fuse     features[1,n,F] · rows[m] int64 -> hidden[1,m,H] (of these rows; P-EAGLE: row n is the learned feature)
draft    inputs   tokens[1,m] depth[1,m] int64 · hidden[1,m,H] · tree_mask[m,w] bool · past[1] write[1] int64 · slots[span] int64
                  rows[r] int64 · beam[k] (only its length counts) · past.i.key / past.i.value [1,Hkv,span,D]
         outputs  next_hidden[1,m,H] · log_probs[r,k] float32 · candidates[r,k] int64 (the target's ids) · present.i.key / .value

Row j pairs the feature of a position with the token *after* it. Its position is past + depth[j], and its key and value go to slot write +
j. It attends to committed slots (below past; only the last ones if the context exceeds the draft's training length) and, of the slots from
past on, to those that tree_mask[j] selects. Committed rows are computed once, from the target's features. Drafted rows come after them in
the cache and are overwritten in the next round.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..checkpoints.draft_arch import DraftArch
from ..checkpoints.draft_checkpoint import BLOCK_NORM, EMBEDDING, HEAD, MASK, DraftCheckpoint
from .builder import BOOL, FLOAT, INT64
from .embedding import Embedding
from .layers import LayerWriter
from .precision import Precision
from .weights import WeightCount


class FuseWriter(LayerWriter):
    """Writes `fuse`: the draft's fc layer, with the norms that some drafts have before it."""

    def __init__(self, draft: DraftArch, source: DraftCheckpoint | None, precision: Precision, features: int, weights: WeightCount) -> None:
        """``source`` may be None if ``weights`` only counts. ``features``: ONNX type of the target's features."""
        super().__init__("fuse", draft.layer, source, precision, 0, weights)
        self.draft, self.features = draft, features

    def build(self) -> None:
        """Write the whole graph."""
        g, draft = self.g, self.draft
        width = len(draft.captured) * draft.target_hidden
        features = g.op("Reshape", g.input("features", self.features, [1, "n", width]), g.const([-1, width]))
        features = self._chosen(features, g.input("rows", INT64, ["m"]), width)
        if self.features != self.precision.compute:
            features = g.op("Cast", features, to=self.precision.compute)
        if draft.norm_before_fc:
            features = self._norm(features, "model.input_norm.weight", width)
        if draft.fc_norm:
            count = len(draft.captured)
            parts = g.ops("Split", features, outs=[None] * count, axis=1, num_outputs=count)
            normed = [self._norm(part, f"model.fc_norm.{index}.weight", draft.target_hidden) for index, part in enumerate(parts)]
            features = g.op("Concat", *normed, axis=1)
        hidden = self._product(features, "fc", (draft.layer.hidden, width), ["model.fc.weight"], self.precision.matrix)
        if draft.is_dflash:
            hidden = self._norm(hidden, BLOCK_NORM)
        g.op("Unsqueeze", hidden, g.const([0]), out="hidden")
        g.output("hidden", self.precision.compute, [1, "m", draft.layer.hidden])

    def _chosen(self, features: str, rows: str, width: int) -> str:
        """The ``rows`` of ``features`` [n, width]. In a P-EAGLE draft, row n is its learned feature."""
        g = self.g
        if self.draft.one_pass is None or self.draft.is_dflash:
            return g.op("Gather", features, rows)
        count = g.op("Shape", features, end=1)
        found = g.op("Gather", features, g.op("Min", rows, g.op("Sub", count, g.const([1]))))
        mask = self._stored(MASK, (width,), [MASK])
        if self.features != self.precision.stored:
            mask = g.op("Cast", mask, to=self.features)
        return g.op("Where", g.op("Unsqueeze", g.op("Equal", rows, count), g.const([1])), mask, found)


class DraftWriter(LayerWriter):
    """Writes `draft`. ``embedding``: the tensor in the target's graph, for drafts without an embedding of their own."""

    graph_name = "draft"
    row_axis = "m"  # name of the dimension of the pass's rows

    def __init__(
        self,
        draft: DraftArch,
        source: DraftCheckpoint | None,
        precision: Precision,
        capacity: int,
        weights: WeightCount,
        embedding: Embedding,
        static: bool = False,
    ) -> None:
        super().__init__(self.graph_name, draft.layer, source, precision, capacity, weights, static)
        self.draft, self.checkpoint, self.embedding = draft, source, embedding
        if draft.layer.longest_context < capacity:
            self.window = draft.layer.longest_context  # the draft has not seen larger distances in training

    def build(self) -> None:
        """Write the whole graph."""
        g, size = self.g, self.arch.hidden
        tokens, hidden, rows, beam = self._inputs()
        hidden = g.op("Reshape", hidden, g.const([-1, size]))
        feature = self._norm(hidden, "model.layers.0.hidden_norm.weight")
        both = g.op("Concat", self._norm(self._embedded(tokens), "model.layers.0.input_layernorm.weight"), feature, axis=1)
        hidden = self._layer(0, both, feature if self.draft.norm_before_residual else hidden)
        for layer in range(1, self.arch.layers):
            hidden = self._layer(layer, self._norm(hidden, f"model.layers.{layer}.input_layernorm.weight"), hidden)
        normed = self._norm(hidden, "model.norm.weight")
        g.op("Unsqueeze", normed if self.draft.norm_output else hidden, g.const([0]), out="next_hidden")
        self._candidates(g.op("Gather", normed, rows), beam)
        g.output("next_hidden", self.precision.compute, [1, self.row_axis, size])
        g.output("log_probs", FLOAT, ["r", "k"])
        g.output("candidates", INT64, ["r", "k"])
        self._declare_presents()

    def _inputs(self) -> tuple[str, str, str, str]:
        """Declare the inputs but the caches, and write the nodes that all layers share. Returns the names of ``tokens``, ``hidden``,
        ``rows`` and ``beam``."""
        g = self.g
        tokens = g.input("tokens", INT64, [1, self.row_axis])
        hidden = g.input("hidden", self.precision.compute, [1, self.row_axis, self.arch.hidden])
        depth = g.input("depth", INT64, [1, self.row_axis])
        tree_mask = g.input("tree_mask", BOOL, [self.row_axis, "w"])
        self.past, self.write = g.input("past", INT64, [1]), g.input("write", INT64, [1])
        self.value_write = self.write
        slots = g.input("slots", INT64, ["span"])
        rows, beam = g.input("rows", INT64, ["r"]), g.input("beam", INT64, ["k"])
        self.positions = g.op("Add", depth, self.past)
        self.mask = self._attention_mask(tree_mask, slots)
        self.rope = self._rotary()
        return tokens, hidden, rows, beam

    def _matrix(self, layer: int, matrix: str) -> tuple[tuple[str, ...], int, int]:
        parts, outputs, inputs = super()._matrix(layer, matrix)
        return (
            parts,
            outputs,
            2 * inputs if layer == 0 and matrix == "qkv" else inputs,
        )  # embedding and feature, concatenated

    def _embedded(self, tokens: str) -> str:
        """Embeddings of the tokens [1, m], as [m, H] in the compute type."""
        own = self.draft.own_embedding
        table = self._table(EMBEDDING, (self.arch.vocab, self.arch.hidden)) if own else self.embedding
        return table.rows(self.g, tokens, self.precision.compute)

    def _candidates(self, normed: str, beam: str) -> None:
        """The ``k`` most probable tokens of each row. Log-probabilities are float32 at every precision; ties go to the lower draft id."""
        g, vocab = self.g, self.draft.vocab
        logits = self._product(normed, "head", (vocab, self.arch.hidden), [HEAD], self.precision.head)
        if self.precision.compute != FLOAT:
            logits = g.op("Cast", logits, to=FLOAT)
        _, indices = g.ops("TopK", g.op("LogSoftmax", logits, axis=-1), g.op("Shape", beam), outs=("log_probs", None), axis=-1)
        ids = g.initializer(self.weights.add("d2t", INT64, (vocab,), self._tokens()))
        g.op("Gather", ids, indices, out="candidates")

    def _tokens(self) -> Iterator[np.ndarray]:
        assert self.checkpoint is not None  # only a WeightFile reads it
        yield self.checkpoint.tokens
