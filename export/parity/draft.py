"""Checks an exported draft against a numpy reference, on committed rows and then on one level of a tree, as the runtime feeds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from runtime.backends.cpu.processor import usable_cores
from runtime.manifest.schema import Check

from ..checkpoints.draft_checkpoint import EMBEDDING, HEAD, DraftCheckpoint
from ..graphs.builder import BFLOAT16, FLOAT
from ..graphs.embedding import rounded_embedding
from ..graphs.precision import NUMPY_TYPES, Precision
from .as_float32 import float32_copy
from .reference import decoder_layer, linear, norm
from .target import accuracy_option, compare, log_softmax, shorten_caches

COMMITTED, BEAMS, SLOTS = 5, 3, 16  # rows already accepted, nodes of the level below the last of them, cache slots


def reference_fuse(draft: DraftCheckpoint, features: np.ndarray) -> np.ndarray:
    """The draft's fc layer in numpy: the target's features float32 [m, F] -> hidden states [m, H]."""
    arch = draft.arch
    if arch.norm_before_fc:
        features = norm(draft, arch.layer, "model.input_norm", features)
    if arch.fc_norm:
        parts = np.split(features, len(arch.captured), axis=-1)
        features = np.concatenate([norm(draft, arch.layer, f"model.fc_norm.{i}", part) for i, part in enumerate(parts)], axis=-1)
    return linear(draft, "model.fc", features)


def reference_pass(
    draft: DraftCheckpoint, tokens: np.ndarray, hidden: np.ndarray, positions: np.ndarray, mask: np.ndarray, target: Precision
) -> tuple[np.ndarray, np.ndarray]:
    """The draft's forward pass in numpy, over all rows at once and without a cache.

    tokens [n], hidden [n, H], positions [n] and ancestor mask [n, n] -> (hidden states for the next draft step [n, H], log-probabilities
    over the draft's vocabulary [n, Vd]). ``target``: precision of the target. A shared embedding is rounded to what it stores, because that
    rounding is the target's and must not count as the draft's.
    """
    arch, layer = draft.arch, draft.arch.layer
    cos, sin = (table[positions][:, None, :] for table in layer.rope.tables(layer.head_dim, int(positions.max()) + 1))
    source = draft if arch.own_embedding else draft.target
    embedded = np.stack([source.read(EMBEDDING, int(token), int(token) + 1)[0] for token in tokens])
    if source is draft.target:
        embedded = rounded_embedding(embedded, target)
    feature = norm(draft, layer, "model.layers.0.hidden_norm", hidden)
    attention_input = np.concatenate([norm(draft, layer, "model.layers.0.input_layernorm", embedded), feature], axis=-1)
    residual = feature if arch.norm_before_residual else hidden
    hidden = decoder_layer(draft, layer, "model.layers.0.", attention_input, residual, cos, sin, mask)
    for index in range(1, layer.layers):
        prefix = f"model.layers.{index}."
        hidden = decoder_layer(draft, layer, prefix, norm(draft, layer, f"{prefix}input_layernorm", hidden), hidden, cos, sin, mask)
    normed = norm(draft, layer, "model.norm", hidden)
    logits = linear(draft, HEAD.removesuffix(".weight"), normed).astype(np.float64)
    return normed if arch.norm_output else hidden, log_softmax(logits)


def check_draft(directory: Path, draft: DraftCheckpoint, precision: Precision, target: Precision) -> Check:
    """Compare the graphs `fuse` and `draft` in ``directory`` with the reference. ``target``: precision of the target, whose features and
    embedding the draft reads. Raises ParityError if the difference is more than rounding."""
    random = np.random.default_rng(0)
    width = len(draft.arch.captured) * draft.arch.target_hidden
    features = random.standard_normal((COMMITTED, width), np.float32).astype(NUMPY_TYPES[cpu_type(target)])
    tokens = random.choice(draft.arch.layer.vocab, COMMITTED, replace=False)
    causal = np.tri(COMMITTED, dtype=bool)

    hidden = reference_fuse(draft, features.astype(np.float32))
    next_hidden, committed = reference_pass(draft, tokens, hidden, np.arange(COMMITTED), causal, target)
    beams = draft.tokens[np.argsort(-committed[-1], kind="stable")[:BEAMS]]
    mask = np.block([[causal, np.zeros((COMMITTED, BEAMS), bool)], [np.ones((BEAMS, COMMITTED), bool), np.eye(BEAMS, dtype=bool)]])
    _, level = reference_pass(
        draft,
        np.concatenate([tokens, beams]),
        np.concatenate([hidden, np.repeat(next_hidden[-1:], BEAMS, 0)]),
        np.concatenate([np.arange(COMMITTED), np.full(BEAMS, COMMITTED)]),
        mask,
        target,
    )
    actual = _ExportedDraft(directory, draft, precision).run(features, tokens, beams)
    return compare(np.concatenate([committed, level[-BEAMS:]]), actual, precision, "draft")


class _ExportedDraft:
    """The graphs `fuse` and `draft` in ONNX Runtime."""

    def __init__(self, directory: Path, draft: DraftCheckpoint, precision: Precision) -> None:
        self.directory, self.draft, self.dtype = directory, draft, NUMPY_TYPES[cpu_type(precision)]

    def run(self, features: np.ndarray, tokens: np.ndarray, beams: np.ndarray) -> np.ndarray:
        """Log-probabilities [COMMITTED + BEAMS, Vd] of the committed rows and of the ``beams``, which are children of the last."""
        layer = self.draft.arch.layer
        (hidden,) = open_session(self.directory / "fuse.onnx", self.dtype).run(
            None, {"features": features[None], "rows": np.arange(COMMITTED)}
        )
        session = open_session(self.directory / "draft.onnx", self.dtype)
        slots = session.get_inputs()[-1].shape[2]
        empty = np.zeros((1, layer.kv_heads, slots if isinstance(slots, int) else SLOTS, layer.head_dim), self.dtype)
        caches = {f"past.{index}.{part}": empty for index in range(layer.layers) for part in ("key", "value")}
        committed = session.run(None, self._feeds(tokens, hidden, np.arange(COMMITTED), np.tri(COMMITTED, dtype=bool), 0, caches))
        caches = dict(zip(caches, committed[3:], strict=True))
        last_hidden = np.repeat(committed[0][:, -1:], BEAMS, 1)
        level = session.run(None, self._feeds(beams, last_hidden, np.zeros(BEAMS, np.int64), np.eye(BEAMS, dtype=bool), COMMITTED, caches))
        return np.concatenate([by_draft_id(self.draft, *each[1:3]) for each in (committed, level)])

    def _feeds(
        self, tokens: np.ndarray, hidden: np.ndarray, depth: np.ndarray, mask: np.ndarray, past: int, caches: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        integers = {
            "past": [past],
            "write": [past],
            "slots": range(SLOTS),
            "rows": range(len(tokens)),
            "beam": range(len(self.draft.tokens)),
        }
        feeds = {name: np.array(value, np.int64) for name, value in integers.items()}
        return {**feeds, "tokens": tokens[None], "hidden": hidden, "depth": depth[None], "tree_mask": mask, **caches}


def by_draft_id(draft: DraftCheckpoint, log_probs: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Log-probabilities in the order of the draft's vocabulary. The graph sorts them; ``candidates`` are the target's ids."""
    draft_ids = np.full(draft.arch.layer.vocab, -1)  # by the target's token id
    draft_ids[draft.tokens] = np.arange(len(draft.tokens))
    ordered = np.zeros_like(log_probs)
    np.put_along_axis(ordered, draft_ids[candidates], log_probs, axis=1)
    return ordered


def cpu_type(precision: Precision) -> int:
    """The ONNX type that the check computes in: float32 in place of bfloat16."""
    return FLOAT if precision.compute == BFLOAT16 else precision.compute


def open_session(file: Path, dtype: np.dtype, slots: int | None = None) -> Any:
    """An ONNX Runtime session of a graph that computes in ``dtype``. A bfloat16 graph is replaced by its float32 copy. ``slots``: of static
    caches, in place of their capacity."""
    model = onnx.load(file, load_external_data=False)
    bfloat16 = any(value.type.tensor_type.elem_type == BFLOAT16 for value in (*model.graph.input, *model.graph.output))
    if not bfloat16 and slots is None:
        return _open(file, dtype)
    if slots is not None:
        shorten_caches(model, slots)
    copy = file.with_name(f"check.{file.name}")
    onnx.save(float32_copy(model) if bfloat16 else model, copy)
    try:
        return _open(copy, dtype)
    finally:
        copy.unlink()


def _open(file: Path, dtype: np.dtype) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 4
    options.add_session_config_entry(*accuracy_option(dtype))
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
