"""Writes the draft's graphs and its weight file to an engine directory, and checks them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from runtime.manifest.graphs import File
from runtime.manifest.schema import Draft

from .checkpoints.draft_arch import DraftArch
from .checkpoints.draft_checkpoint import DraftCheckpoint
from .graph_files import save_graphs
from .graphs.builder import FLOAT
from .graphs.dflash import DFlashWriter
from .graphs.draft import DraftWriter, FuseWriter
from .graphs.embedding import Embedding
from .graphs.lanes.writers import DRAFT_LANES, draft_lanes
from .graphs.precision import BACKENDS, ONNXRUNTIME, TENSORRT, Precision
from .graphs.tree_growth import MAX_DEPTH, build_expand, build_tree
from .graphs.weights import WeightCount, WeightFile
from .parity.dflash import check_dflash
from .parity.draft import check_draft
from .parity.lanes import check_draft_lanes

MAX_WIDTH = 16  # candidates kept per tree level (beam width); the papers use 10


def max_width(draft: DraftArch) -> int:
    """Largest number of candidates per tree level: at most the size of the draft's vocabulary."""
    return min(MAX_WIDTH, draft.vocab)


def max_depth(draft: DraftArch) -> int:
    """Most levels of a tree."""
    return draft.levels or MAX_DEPTH


def draft_writers(
    draft: DraftArch,
    source: DraftCheckpoint | None,
    precision: Precision,
    target: Precision,
    context: int,
    weights: WeightCount,
    embedding: Embedding,
    static: bool,
    columns: int = 0,
) -> tuple[FuseWriter, DraftWriter]:
    """Build the `fuse` and `draft` graphs and return their writers.

    ``target``: the target's precision. ``context``: most committed tokens. ``embedding``: the target's embedding tensor, which draft.onnx
    shares unless the draft has its own. ``static``: the form for TensorRT. ``columns``: most rows of one lane in a pass with lanes. The
    cache has slots for all committed tokens, the rows of the largest tree and those of such a pass, rounded up to a multiple of 64.
    """
    fuse = FuseWriter(draft, source, precision, target.compute, weights)
    fuse.build()
    drafted = draft.one_pass.rows if draft.one_pass else max_width(draft) * (MAX_DEPTH - 1)
    capacity = -(-(context + drafted + columns) // 64) * 64
    writer = (DFlashWriter if draft.is_dflash else DraftWriter)(draft, source, precision, capacity, weights, embedding, static)
    writer.build()
    return fuse, writer


def write_draft(
    scratch: Path,
    draft: DraftCheckpoint,
    precision_name: str,
    target: Precision,
    context: int,
    embedding: Embedding,
    backend: str = ONNXRUNTIME,
    columns: int = 0,
) -> tuple[dict[str, onnx.ModelProto], File, Draft]:
    """Write and check all files of the draft. ``target``: the target's precision. ``embedding``: the target's embedding tensor, which
    draft.onnx shares. ``columns``: rows of one lane in a pass with lanes; 0: no such graph for TensorRT. Returns the graphs by name, and
    the manifest's entries for draft.data and for the draft. Raises ParityError."""
    precision, layer = BACKENDS[backend][precision_name], draft.arch.layer
    with WeightFile(scratch / "draft.data") as weights:
        fuse, writer = draft_writers(draft.arch, draft, precision, target, context, weights, embedding, backend == TENSORRT, columns)
    models, one_pass = {"fuse": fuse.model(), "draft": writer.model()}, draft.arch.one_pass
    if one_pass is None:
        models |= {"expand": build_expand(layer.hidden, precision.compute), "tree": build_tree()}
    wanted = one_pass is None and (columns > 0 if backend == TENSORRT else target.compute == FLOAT)
    if wanted and (lanes := draft_lanes(writer)):
        models[DRAFT_LANES] = lanes
    save_graphs(scratch, models)
    check = (check_dflash if draft.arch.is_dflash else check_draft)(scratch, draft, precision, target)
    if DRAFT_LANES in models:
        check_draft_lanes(scratch, draft, precision, writer.capacity, writer.static)
    described = Draft(
        name=draft.path.name,
        weights_sha256=draft.sha256,
        precision=precision_name,
        layers=layer.layers,
        kv_heads=layer.kv_heads,
        head_dim=layer.head_dim,
        hidden=layer.hidden,
        vocab=len(draft.tokens),
        tokens_sha256=hashlib.sha256(draft.tokens.tobytes()).hexdigest(),
        trained_length=layer.longest_context,
        capacity=writer.capacity,
        max_depth=max_depth(draft.arch),
        max_width=max_width(draft.arch),
        check=check,
        one_pass=one_pass,
    )
    return models, File(weights.sha256, weights.size), described
