"""The graphs that compute rows of several requests (lanes) in one pass (design.md section 4).

target_lanes  tokens[1,N] positions[1,N] rows[r] int64, and the inputs of the attention
              -> next_token[1,r] logits[1,r,V] features[1,N,F] present.i.key / .value
draft_lanes   tokens[1,N] positions[1,N] rows[r] beam[k] int64, hidden[1,N,H], and the inputs of the attention
              -> next_hidden[1,N,H] log_probs[r,k] candidates[r,k] present.i.key / .value

Attention has two forms: over pages for ONNX Runtime on a CPU (paged_attention.py), over whole lanes for TensorRT (padded_attention.py).
Everything else is as in the graphs for one lane, and the weights are the same tensors of the same files. The draft's `attend`, over pages,
selects only slots within its training length.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import onnx

from runtime.manifest.graphs import PAGE_SLOTS

from ..builder import FLOAT, INT64
from ..draft import DraftWriter
from ..target import TargetWriter
from ..weights import WeightCount
from .lane_attention import LaneAttention
from .padded_attention import PaddedAttention
from .paged_attention import PagedAttention

TARGET_LANES, DRAFT_LANES = "target_lanes", "draft_lanes"
"""Their names in the manifest."""


class TargetLanesWriter(LaneAttention, TargetWriter):
    """Writes the target's graph with lanes, in either form."""

    graph_name, row_axis = TARGET_LANES, "N"

    def _inputs(self) -> tuple[str, str]:
        g = self.g
        tokens = g.input("tokens", INT64, [1, self.row_axis])
        self.positions = g.input("positions", INT64, [1, self.row_axis])
        self._lane_inputs()
        rows = g.input("rows", INT64, ["r"])
        self.rope = self._rotary()
        return tokens, rows


class DraftLanesWriter(LaneAttention, DraftWriter):
    """Writes the draft's graph with lanes, in either form."""

    graph_name, row_axis = DRAFT_LANES, "N"

    def _inputs(self) -> tuple[str, str, str, str]:
        g = self.g
        tokens = g.input("tokens", INT64, [1, self.row_axis])
        hidden = g.input("hidden", self.precision.compute, [1, self.row_axis, self.arch.hidden])
        self.positions = g.input("positions", INT64, [1, self.row_axis])
        self._lane_inputs()
        rows, beam = g.input("rows", INT64, ["r"]), g.input("beam", INT64, ["k"])
        self.rope = self._rotary()
        return tokens, hidden, rows, beam


class _PagedTarget(PagedAttention, TargetLanesWriter):
    reads_chunks = True


class _PaddedTarget(PaddedAttention, TargetLanesWriter):
    pass


class _PagedDraft(PagedAttention, DraftLanesWriter):
    pass


class _PaddedDraft(PaddedAttention, DraftLanesWriter):
    columns = "w"


def target_lanes(standard: TargetWriter) -> onnx.ModelProto | None:
    """The graph with lanes for a finished graph, over the same weight file. None for a CPU if the target does not compute in float32, and
    for heads of more numbers than MLAS adds in one block, if sums must be ordered."""
    too_wide = standard.ordered and standard.arch.head_dim > PAGE_SLOTS
    if not standard.static and (standard.precision.compute != FLOAT or too_wide):
        return None
    writer = (_PaddedTarget if standard.static else _PagedTarget)(
        standard.arch,
        standard.source,  # tells which matrices are stored as the checkpoint's integers; no weight is read
        standard.precision,
        standard.capacity,
        _same_weights(standard),
        standard.captured,
        standard.static,
        standard.keep_integers,
        replace(standard.rounding, calibration=None),  # no weight is rounded
    )
    deque(writer.build(), 0)
    assert writer.weights.size == standard.weights.size
    return writer.model()


def draft_lanes(standard: DraftWriter) -> onnx.ModelProto | None:
    """The graph with lanes for a finished draft graph, over the same weight file. None for a CPU if the draft does not compute in
    float32."""
    if not standard.static and standard.precision.compute != FLOAT:
        return None
    weights, kind = _same_weights(standard), _PaddedDraft if standard.static else _PagedDraft
    writer = kind(standard.draft, None, standard.precision, standard.capacity, weights, standard.embedding, standard.static)
    writer.build()
    assert weights.size == standard.weights.size
    return writer.model()


def _same_weights(standard: TargetWriter | DraftWriter) -> WeightCount:
    """Counts from where the finished graph began: the same tensors in the same order have the same offsets in the file."""
    return WeightCount(standard.weights.location, standard.first_byte)
