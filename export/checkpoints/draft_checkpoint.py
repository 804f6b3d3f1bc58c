"""Draft checkpoints: one set of tensor names for all families, and checks that the draft belongs to the target.

The checks matter because a wrong draft does not fail at run time: its tokens are just never accepted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from runtime.manifest.graphs import sha256_of

from ..errors import CheckpointError, UnsupportedModel
from .draft_arch import DraftArch, draft_arch
from .quantized.methods import reader_of
from .quantized.settings import quantization_of
from .safetensors import Checkpoint, Files, read_json
from .weight_files import open_files

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MASK, BLOCK_NORM = "model.mask_hidden", "model.hidden_norm.weight"  # P-EAGLE's learned feature; DFlash's norm after fc
TURN = "model.turn.weight"
"""[H, H], turns rows of a rotated target's embedding back. No file has it (export/rotation/draft.py)."""
_LAYER_PARTS = (
    "input_layernorm",
    "post_attention_layernorm",
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
)
_OPTIONAL = {"d2t", "t2d", HEAD, EMBEDDING}


@dataclass(frozen=True)
class DraftCheckpoint:
    """A draft's weights under the names that the graph writer uses (model.layers.0.…, model.fc.weight, lm_head.weight).

    ``tokens``: the target's id of each draft token, int64 [Vd], distinct. ``own_head``: False if the draft has no lm_head; then its head is
    made of the target's rows for ``tokens``.
    """

    arch: DraftArch
    path: Path
    tokens: np.ndarray
    target: Checkpoint
    own_head: bool
    _files: Files
    _names: dict[str, str]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. Raises CheckpointError if the draft lacks it."""
        if name == HEAD and not self.own_head:
            return len(self.tokens), self.arch.layer.hidden
        if name not in self._names:
            raise CheckpointError(f"{self.path} has no tensor for {name!r} — it is incomplete, or not {self.arch.family}")
        shape = self._files.shape(self._names[name])
        return (math.prod(shape),) if name == MASK else shape

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of a tensor as float32. Raises CheckpointError if the draft lacks it."""
        self.shape(name)
        if name == HEAD and not self.own_head:
            tokens = self.tokens[start:stop]
            first = int(tokens.min())
            rows = self.target.read(EMBEDDING if self.target.arch.tied_head else HEAD, first, int(tokens.max()) + 1)
            return np.asarray(rows[tokens - first])
        if name == MASK:  # stored as [1, 1, F] or [1, F]
            return self._files.read(self._names[name]).reshape(-1)[start:stop]
        return self._files.read(self._names[name], start, stop)

    def fingerprint(self) -> list[list[Any]]:
        """[file name, size, mtime_ns] of every file."""
        return self._files.fingerprint()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weight files, by which a tuning identifies its draft."""
        return sha256_of(*self._files.files)


def open_draft(directory: Path, target: Checkpoint) -> DraftCheckpoint:
    """Open a draft of ``target`` and check its tensors. Raises CheckpointError if files are missing or contradict each other, and
    UnsupportedModel if it is another kind of draft or for another target."""
    if not directory.is_dir():
        raise CheckpointError(f"there is no draft at {directory} — give a directory with config.json and its weights, or a hub id")
    config = read_json(directory / "config.json")
    quantization = quantization_of(directory, config)
    reader = reader_of(quantization) if quantization else None
    arch = draft_arch(config, target.arch)
    files = open_files(directory, config)
    if reader:
        files = reader(files)
    names = {_canonical(name): name for name in files.names()}
    arch = replace(
        arch,
        norm_before_fc=_has_norm(arch.norm_before_fc, "model.input_norm.weight" in names, "norm_before_fc", directory),
        fc_norm=_has_norm(arch.fc_norm, "model.fc_norm.0.weight" in names, "fc_norm", directory),
        own_embedding=arch.own_embedding or (arch.one_pass is not None and EMBEDDING in names),  # trained, or a copy of the target's
    )
    _check_tensors(arch, names, directory)
    _check_fc(arch, files.shape(names["model.fc.weight"]))
    own_head = HEAD in names
    if not own_head and arch.layer.hidden != arch.target_hidden:
        raise CheckpointError(
            f"{directory} has no lm_head, and the target's head does not fit its hidden size — the checkpoint is incomplete"
        )
    tokens = _draft_tokens(arch, files, names, directory)
    return DraftCheckpoint(arch, directory, tokens, target, own_head, files, names)


def _canonical(name: str) -> str:
    """A tensor's name as in a target's checkpoint: midlayer.*, layers.0.* and model.layers.0.* are the same layer."""
    name = name.removeprefix("model.")
    if name.startswith("midlayer."):
        name = f"layers.0.{name.removeprefix('midlayer.')}"
    return name if name.startswith("lm_head.") or name in ("d2t", "t2d") else f"model.{name}"


def _has_norm(switch: bool | None, present: bool, name: str, directory: Path) -> bool:
    """Whether the draft has an optional norm. Raises CheckpointError if config (``switch``) and tensors (``present``) disagree."""
    if switch is not None and switch != present:
        raise CheckpointError(
            f"{directory} is contradictory: {name} is {str(switch).lower()} in its config, but its norm weights are "
            f"{'present' if present else 'missing'} — get the checkpoint again"
        )
    return present


def _check_tensors(arch: DraftArch, names: dict[str, str], directory: Path) -> None:
    """Check that the files have every tensor that the forward pass needs, and none that it would ignore."""
    layer = arch.layer
    biased = {"q": layer.qkv_bias, "k": layer.qkv_bias, "v": layer.qkv_bias, "o": layer.output_bias}
    needed = {"model.fc.weight", "model.norm.weight", BLOCK_NORM if arch.is_dflash else "model.layers.0.hidden_norm.weight"}
    if arch.one_pass and not arch.is_dflash:
        needed.add(MASK)
    for index in range(layer.layers):
        stem = f"model.layers.{index}."
        needed |= {f"{stem}{part}.weight" for part in _LAYER_PARTS}
        needed |= {f"{stem}self_attn.{part}_proj.bias" for part, bias in biased.items() if bias}
        needed |= {f"{stem}self_attn.{part}_norm.weight" for part in "qk" if layer.qk_norm}
    if arch.norm_before_fc:
        needed.add("model.input_norm.weight")
    if arch.fc_norm:
        needed |= {f"model.fc_norm.{index}.weight" for index in range(len(arch.captured))}
    if arch.own_embedding:
        needed.add(EMBEDDING)
    missing, extra = sorted(needed - names.keys()), sorted(names.keys() - needed - _OPTIONAL)
    if missing:
        raise CheckpointError(
            f"{directory} lacks {', '.join(missing[:3])} ({len(missing)} tensors) — it is incomplete, or not {arch.family}"
        )
    if extra:
        raise UnsupportedModel(
            f"{directory} has tensors that {arch.family} of this kind does not use: {', '.join(extra[:3])} — not supported"
        )


def _check_fc(arch: DraftArch, shape: tuple[int, ...]) -> None:
    expected = (arch.layer.hidden, len(arch.captured) * arch.target_hidden)
    if shape != expected:
        raise UnsupportedModel(
            f"the draft's fc has shape {list(shape)}, but this target with {len(arch.captured)} captured layers needs {list(expected)} — "
            f"it was trained for another target, or is not {arch.family}"
        )


def _draft_tokens(arch: DraftArch, files: Files, names: dict[str, str], directory: Path) -> np.ndarray:
    """The target's id of each draft token, int64 [Vd].

    Some families store d2t as offsets (target id minus draft id), others as target ids. The reading that gives distinct, valid ids is used.
    If both do, t2d (one bool for each target token) decides.
    """
    size, vocab = arch.vocab, arch.layer.vocab
    if "d2t" not in names:
        if size != vocab:
            raise CheckpointError(
                f"{directory} has {size} draft tokens, but no d2t that maps them to the target's {vocab} — it is incomplete"
            )
        return np.arange(vocab)
    d2t = files.read(names["d2t"]).astype(np.int64)
    if d2t.shape != (size,):
        raise CheckpointError(f"{directory}: d2t has {d2t.size} entries, the config says {size} draft tokens — get the checkpoint again")
    readings = [ids for ids in (d2t + np.arange(size), d2t) if ids.min() >= 0 and ids.max() < vocab and len(np.unique(ids)) == size]
    if "t2d" in names:
        member = files.read(names["t2d"]).astype(bool)
        readings = [ids for ids in readings if member.shape == (vocab,) and member[ids].all() and member.sum() == size]
    if not readings:
        raise CheckpointError(
            f"{directory}: d2t does not map to {size} distinct tokens of the target's {vocab} — draft and target do not belong together"
        )
    if len(readings) > 1 and not np.array_equal(readings[0], readings[1]):
        raise CheckpointError(f"{directory}: d2t can be read as offsets or as ids, and there is no t2d to decide — convert the checkpoint")
    return readings[0]
