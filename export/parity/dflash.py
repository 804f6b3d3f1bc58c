"""Checks an exported DFlash draft against a numpy reference: a block behind committed tokens, which reach the cache in two passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from runtime.manifest.schema import Check

from ..checkpoints.draft_checkpoint import BLOCK_NORM, EMBEDDING, HEAD, TURN, DraftCheckpoint
from ..graphs.embedding import rounded_embedding
from ..graphs.precision import NUMPY_TYPES, Precision
from .draft import by_draft_id, cpu_type, open_session, reference_fuse
from .reference import decoder_layer, linear, norm
from .target import compare, log_softmax

FIRST, SECOND = 3, 2  # committed tokens of the two passes


def reference_block(draft: DraftCheckpoint, hidden: np.ndarray, tokens: np.ndarray, target: Precision) -> np.ndarray:
    """Log-probabilities [m, Vd] of a block of ``tokens`` [m] behind committed tokens with the fused features ``hidden`` [n, H], from one
    dense pass. ``target``: precision of the target, whose embedding the block may share."""
    arch, layer, block = draft.arch, draft.arch.layer, draft.arch.block
    assert block is not None
    count, rows = len(hidden), len(hidden) + len(tokens)
    cos, sin = (table[:, None, :] for table in layer.rope.tables(layer.head_dim, rows))
    source = draft if arch.own_embedding else draft.target
    stream = np.stack([source.read(EMBEDDING, int(token), int(token) + 1)[0] for token in tokens])
    if source is draft.target:
        stream = rounded_embedding(stream, target)
    if arch.turned:
        stream = linear(draft, TURN.removesuffix(".weight"), stream)
    distance = np.arange(rows)[:, None] - np.arange(rows)
    for index in range(layer.layers):
        seen = np.abs(distance) < min(size for size in (block.windows[index], layer.max_position) if size is not None)
        if block.causal[index]:
            seen &= distance >= 0
        prefix = f"model.layers.{index}."
        normed = np.concatenate([hidden, norm(draft, layer, f"{prefix}input_layernorm", stream)])
        # Rows of committed tokens are there for their keys and values; what the layer makes of them is dropped.
        stream = decoder_layer(draft, layer, prefix, normed, np.concatenate([hidden, stream]), cos, sin, seen)[count:]
    logits = linear(draft, HEAD.removesuffix(".weight"), norm(draft, layer, "model.norm", stream))
    return log_softmax(logits.astype(np.float64))


def check_dflash(directory: Path, draft: DraftCheckpoint, precision: Precision, target: Precision) -> Check:
    """Compare the graphs `fuse` and `draft` in ``directory`` with the reference. ``target``: precision of the target, whose features and
    embedding the draft reads. Raises ParityError if the difference is more than rounding."""
    arch, one_pass, random = draft.arch, draft.arch.one_pass, np.random.default_rng(0)
    assert one_pass is not None
    width, count = len(arch.captured) * arch.target_hidden, FIRST + SECOND
    features = random.standard_normal((count, width), np.float32).astype(NUMPY_TYPES[cpu_type(target)])
    tokens = np.full(one_pass.rows, one_pass.mask_token)
    tokens[0] = random.integers(arch.layer.vocab)
    hidden = norm(draft, arch.layer, BLOCK_NORM.removesuffix(".weight"), reference_fuse(draft, features.astype(np.float32)))
    expected = reference_block(draft, hidden, tokens, target)
    return compare(expected, _exported(directory, draft, precision, features, tokens), precision, "draft")


def _exported(directory: Path, draft: DraftCheckpoint, precision: Precision, features: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Log-probabilities [m, Vd] of the block by the graphs."""
    layer, kind, slots = draft.arch.layer, NUMPY_TYPES[cpu_type(precision)], len(features) + len(tokens) + 1
    (hidden,) = open_session(directory / "fuse.onnx", kind).run(None, {"features": features[None], "rows": np.arange(len(features))})
    session = open_session(directory / "draft.onnx", kind)
    empty = np.zeros((1, layer.kv_heads, slots, layer.head_dim), kind)
    caches: dict[str, Any] = {f"past.{index}.{part}": empty for index in range(layer.layers) for part in ("key", "value")}
    outputs: list[np.ndarray] = []
    for start, stop in ((0, FIRST), (FIRST, len(features))):
        numbers = {"past": [start], "slots": range(slots), "rows": range(len(tokens)), "beam": range(len(draft.tokens))}
        feeds = {name: np.array(value, np.int64) for name, value in numbers.items()}
        outputs = session.run(None, {**feeds, "tokens": tokens[None], "hidden": hidden[:, start:stop], **caches})
        caches = dict(zip(caches, outputs[2:], strict=True))
    return by_draft_id(draft, *outputs[:2])
