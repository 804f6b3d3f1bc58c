"""The graphs that compute rows of several requests (lanes) in one pass, for ONNX Runtime on a CPU (design.md section 4).

target_lanes  tokens[1,N] positions[1,N] rows[r] int64, and the inputs of paged_attention.py
              -> next_token[1,r] logits[1,r,V] features[1,N,F] present.i.key / .value
draft_lanes   tokens[1,N] positions[1,N] rows[r] beam[k] int64, hidden[1,N,H], and the inputs of paged_attention.py
              -> next_hidden[1,N,H] log_probs[r,k] candidates[r,k] present.i.key / .value

Everything else is as in the graphs for one lane, and the weights are the same tensors of the same files. The draft's `attend` selects only
slots within its training length.
"""

from __future__ import annotations

from collections import deque

import onnx

from runtime.manifest.graphs import PAGE_SLOTS

from ..builder import FLOAT, INT64
from ..draft import DraftWriter
from ..target import TargetWriter
from ..weights import WeightCount
from .paged_attention import PagedAttention

TARGET_LANES, DRAFT_LANES = "target_lanes", "draft_lanes"
"""Their names in the manifest."""


class TargetLanesWriter(PagedAttention, TargetWriter):
    """Writes the target's graph with lanes."""

    graph_name, row_axis = TARGET_LANES, "N"

    def _inputs(self) -> tuple[str, str]:
        g = self.g
        tokens = g.input("tokens", INT64, [1, self.row_axis])
        self.positions = g.input("positions", INT64, [1, self.row_axis])
        self._page_inputs()
        rows = g.input("rows", INT64, ["r"])
        self.rope = self._rotary()
        return tokens, rows


class DraftLanesWriter(PagedAttention, DraftWriter):
    """Writes the draft's graph with lanes."""

    graph_name, row_axis = DRAFT_LANES, "N"

    def _inputs(self) -> tuple[str, str, str, str]:
        g = self.g
        tokens = g.input("tokens", INT64, [1, self.row_axis])
        hidden = g.input("hidden", self.precision.compute, [1, self.row_axis, self.arch.hidden])
        self.positions = g.input("positions", INT64, [1, self.row_axis])
        self._page_inputs()
        rows, beam = g.input("rows", INT64, ["r"]), g.input("beam", INT64, ["k"])
        self.rope = self._rotary()
        return tokens, hidden, rows, beam


def target_lanes(standard: TargetWriter) -> onnx.ModelProto | None:
    """The graph with lanes for a finished graph, over the same weight file. None for TensorRT, if the target does not compute in float32,
    and for heads of more numbers than MLAS adds in one block, if sums must be ordered."""
    too_wide = standard.ordered and standard.arch.head_dim > PAGE_SLOTS
    if standard.static or standard.precision.compute != FLOAT or too_wide:
        return None
    writer = TargetLanesWriter(
        standard.arch,
        standard.source,  # tells which matrices are stored as the checkpoint's integers; no weight is read
        standard.precision,
        standard.capacity,
        _same_weights(standard),
        standard.captured,
        keep_integers=standard.keep_integers,
        rounding=standard.rounding,
    )
    deque(writer.build(), 0)
    assert writer.weights.size == standard.weights.size
    return writer.model()


def draft_lanes(standard: DraftWriter) -> onnx.ModelProto | None:
    """The graph with lanes for a finished draft graph, over the same weight file. None for TensorRT and if the draft does not compute in
    float32."""
    if standard.static or standard.precision.compute != FLOAT:
        return None
    weights = _same_weights(standard)
    writer = DraftLanesWriter(standard.draft, None, standard.precision, standard.capacity, weights, standard.embedding)
    writer.build()
    assert weights.size == standard.weights.size
    return writer.model()


def _same_weights(standard: TargetWriter | DraftWriter) -> WeightCount:
    """Counts from where the finished graph began: the same tensors in the same order have the same offsets in the file."""
    return WeightCount(standard.weights.location, standard.first_byte)
