"""The exported draft against plain numpy: committed rows and then a level of a tree, as the runtime feeds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from runtime.manifest.schema import Check

from ..checkpoints.draft_checkpoint import EMBEDDING, HEAD, DraftCheckpoint
from ..graphs.builder import BFLOAT16, FLOAT
from ..graphs.layers import NUMPY_TYPES, Precision
from .bf16_as_fp32 import float32_twin
from .reference import decoder_layer, linear, norm
from .target import activations, compared, log_softmax

COMMITTED, BEAMS, SLOTS = 5, 3, 16


def reference_fuse(draft: DraftCheckpoint, features: np.ndarray) -> np.ndarray:
    """features float32 [m, F] -> hidden [m, H]."""
    arch = draft.arch
    if arch.norm_before_fc:
        features = norm(draft, arch.layer, "model.input_norm", features)
    if arch.fc_norm:
        parts = np.split(features, len(arch.captured), axis=-1)
        features = np.concatenate([norm(draft, arch.layer, f"model.fc_norm.{i}", part) for i, part in enumerate(parts)], axis=-1)
    return linear(draft, "model.fc", features)


def reference_pass(
    draft: DraftCheckpoint, tokens: np.ndarray, hidden: np.ndarray, positions: np.ndarray, mask: np.ndarray, shared_type: int
) -> tuple[np.ndarray, np.ndarray]:
    """All rows at once, without a cache: (next_hidden [n, H], log-probabilities over the draft's vocabulary [n, Vd]).

    ``shared_type``: what the target's embedding is stored in, which is no rounding of the draft's.
    """
    arch, layer = draft.arch, draft.arch.layer
    cos, sin = (table[positions][:, None, :] for table in layer.rope.tables(layer.head_dim, int(positions.max()) + 1))
    source = draft if arch.own_embedding else draft.target
    embedded = np.stack([source.read(EMBEDDING, int(token), int(token) + 1)[0] for token in tokens])
    if source is draft.target:
        embedded = embedded.astype(NUMPY_TYPES[shared_type]).astype(np.float32)
    feature = norm(draft, layer, "model.layers.0.hidden_norm", hidden)
    both = np.concatenate([norm(draft, layer, "model.layers.0.input_layernorm", embedded), feature], axis=-1)
    residual = feature if arch.norm_before_residual else hidden
    hidden = decoder_layer(draft, layer, "model.layers.0.", both, residual, cos, sin, mask)
    for index in range(1, layer.layers):
        stem = f"model.layers.{index}."
        hidden = decoder_layer(draft, layer, stem, norm(draft, layer, f"{stem}input_layernorm", hidden), hidden, cos, sin, mask)
    normed = norm(draft, layer, "model.norm", hidden)
    logits = linear(draft, HEAD.removesuffix(".weight"), normed).astype(np.float64)
    return normed if arch.norm_output else hidden, log_softmax(logits)


def check_draft(directory: Path, draft: DraftCheckpoint, precision: Precision, target: Precision) -> Check:
    """Compare `fuse` and `draft` in ``directory`` with the reference. Raises ParityError when the difference is more than rounding."""
    random = np.random.default_rng(0)
    width = len(draft.arch.captured) * draft.arch.target_hidden
    features = random.standard_normal((COMMITTED, width), np.float32).astype(NUMPY_TYPES[_runnable(target)])
    tokens = random.choice(draft.arch.layer.vocab, COMMITTED, replace=False)
    chain = np.tri(COMMITTED, dtype=bool)

    hidden = reference_fuse(draft, features.astype(np.float32))
    following, expected = reference_pass(draft, tokens, hidden, np.arange(COMMITTED), chain, target.stored)
    beams = draft.tokens[np.argsort(-expected[-1], kind="stable")[:BEAMS]]
    level = np.block([[chain, np.zeros((COMMITTED, BEAMS), bool)], [np.ones((BEAMS, COMMITTED), bool), np.eye(BEAMS, dtype=bool)]])
    _, drafted = reference_pass(
        draft,
        np.concatenate([tokens, beams]),
        np.concatenate([hidden, np.repeat(following[-1:], BEAMS, 0)]),
        np.concatenate([np.arange(COMMITTED), np.full(BEAMS, COMMITTED)]),
        level,
        target.stored,
    )
    exported = _Exported(directory, draft, precision)
    actual = exported.run(features, tokens, beams)
    return compared(np.concatenate([expected, drafted[-BEAMS:]]), actual, precision, "draft")


class _Exported:
    """The two graphs in ONNX Runtime."""

    def __init__(self, directory: Path, draft: DraftCheckpoint, precision: Precision) -> None:
        self.directory, self.draft, self.kind = directory, draft, NUMPY_TYPES[_runnable(precision)]
        self.place = np.full(draft.arch.layer.vocab, -1)
        self.place[draft.tokens] = np.arange(len(draft.tokens))

    def run(self, features: np.ndarray, tokens: np.ndarray, beams: np.ndarray) -> np.ndarray:
        """Log-probabilities of the committed rows and of the beams below the last, [COMMITTED + BEAMS, Vd]."""
        layer = self.draft.arch.layer
        (hidden,) = _session(self.directory / "fuse.onnx", self.kind).run(None, {"features": features[None], "rows": np.arange(COMMITTED)})
        session = _session(self.directory / "draft.onnx", self.kind)
        slots = session.get_inputs()[-1].shape[2]
        empty = np.zeros((1, layer.kv_heads, slots if isinstance(slots, int) else SLOTS, layer.head_dim), self.kind)
        caches = {f"past.{index}.{part}": empty for index in range(layer.layers) for part in ("key", "value")}
        committed = session.run(None, self._feeds(tokens, hidden, np.arange(COMMITTED), np.tri(COMMITTED, dtype=bool), 0, caches))
        caches = dict(zip(caches, committed[3:], strict=True))
        repeated = np.repeat(committed[0][:, -1:], BEAMS, 1)
        level = session.run(None, self._feeds(beams, repeated, np.zeros(BEAMS, np.int64), np.eye(BEAMS, dtype=bool), COMMITTED, caches))
        return np.concatenate([self._dense(*committed[1:3]), self._dense(*level[1:3])])

    def _feeds(
        self, tokens: np.ndarray, hidden: np.ndarray, depth: np.ndarray, mask: np.ndarray, past: int, caches: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        numbers = {
            "past": [past],
            "write": [past],
            "slots": range(SLOTS),
            "rows": range(len(tokens)),
            "beam": range(len(self.draft.tokens)),
        }
        feeds = {name: np.array(value, np.int64) for name, value in numbers.items()}
        return {**feeds, "tokens": tokens[None], "hidden": hidden, "depth": depth[None], "tree_mask": mask, **caches}

    def _dense(self, log_probs: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """From sorted candidates back to the order of the draft's vocabulary."""
        dense = np.zeros_like(log_probs)
        np.put_along_axis(dense, self.place[candidates], log_probs, axis=1)
        return dense


def _runnable(precision: Precision) -> int:
    """What is computed in here: float32 instead of bfloat16."""
    return FLOAT if precision.compute == BFLOAT16 else precision.compute


def _session(file: Path, kind: np.dtype) -> Any:
    """ONNX Runtime on a graph that computes in ``kind``, or on the float32 twin of one that computes in bfloat16."""
    model = onnx.load(file, load_external_data=False)
    if any(value.type.tensor_type.elem_type == BFLOAT16 for value in (*model.graph.input, *model.graph.output)):
        twin = file.with_name(f"check.{file.name}")
        onnx.save(float32_twin(model), twin)
        try:
            return _open(twin, kind)
        finally:
            twin.unlink()
    return _open(file, kind)


def _open(file: Path, kind: np.dtype) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(*activations(kind))
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
