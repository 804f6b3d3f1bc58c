"""Writes the draft's four graphs and its weights into an engine directory, and checks them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from runtime.manifest.graphs import File
from runtime.manifest.schema import Draft

from .checkpoints.draft_arch import DraftArch
from .checkpoints.draft_checkpoint import DraftCheckpoint
from .graphs.draft import DraftWriter, FuseWriter
from .graphs.embedding import Embedding
from .graphs.precision import BACKENDS, ONNXRUNTIME, TENSORRT, Precision
from .graphs.tree_growth import MAX_DEPTH, build_expand, build_tree
from .graphs.weights import WeightCount, WeightFile
from .parity.draft import check_draft

MAX_WIDTH = 16  # beams a level; the papers use 10


def max_width(draft: DraftArch) -> int:
    """Beams a level: no more than there are tokens."""
    return min(MAX_WIDTH, draft.vocab)


def draft_writers(
    draft: DraftArch,
    source: DraftCheckpoint | None,
    precision: Precision,
    target: Precision,
    context: int,
    weights: WeightCount,
    embedding: Embedding,
    static: bool,
) -> tuple[FuseWriter, DraftWriter]:
    """Writers that have written the graphs with weights. The cache has slots for every committed token and the rows of the largest tree, in
    steps of 64."""
    fuse = FuseWriter(draft, source, precision, target.compute, weights)
    fuse.build()
    capacity = -(-(context + max_width(draft) * (MAX_DEPTH - 1)) // 64) * 64
    writer = DraftWriter(draft, source, precision, capacity, weights, embedding, static)
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
) -> tuple[dict[str, onnx.ModelProto], File, Draft]:
    """``embedding``: the target's table, which draft.onnx points to as well. Returns the graphs, draft.data's entry and the manifest's.
    Raises ParityError."""
    precision, layer = BACKENDS[backend][precision_name], draft.arch.layer
    with WeightFile(scratch / "draft.data") as weights:
        fuse, writer = draft_writers(draft.arch, draft, precision, target, context, weights, embedding, backend == TENSORRT)
    models = {"fuse": fuse.model(), "draft": writer.model(), "expand": build_expand(layer.hidden, precision.compute), "tree": build_tree()}
    for name, model in models.items():
        onnx.save(model, scratch / f"{name}.onnx")
        onnx.checker.check_model(str(scratch / f"{name}.onnx"))
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
        trained_length=layer.max_position,
        capacity=writer.capacity,
        max_depth=MAX_DEPTH,
        max_width=max_width(draft.arch),
        check=check_draft(scratch, draft, precision, target),
    )
    return models, File(weights.sha256, weights.size), described
