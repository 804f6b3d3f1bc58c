"""A draft that reads the features and the embedding of a target with a rotated residual stream. Its own stream is not rotated.

EAGLE-3's first layer takes the rotation of the embedding into its matrices. DFlash adds the embedding to its stream, so its graph turns the
rows back, with one product (TURN).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..checkpoints.draft_arch import DraftArch
from ..checkpoints.draft_checkpoint import MASK, TURN, DraftCheckpoint
from ..errors import UnsupportedModel
from .orthogonal import rotated
from .target import RotatedTarget

_FC, _FIRST = "model.fc.weight", "model.layers.0."
_EMBEDDING_NORM = f"{_FIRST}input_layernorm.weight"
_OF_EMBEDDINGS = tuple(f"{_FIRST}self_attn.{part}_proj.weight" for part in "qkv")


@dataclass(frozen=True)
class RotatedDraft(DraftCheckpoint):
    """``plain``: the draft as it was trained."""

    plain: DraftCheckpoint

    def shape(self, name: str) -> tuple[int, ...]:
        return (self.arch.target_hidden,) * 2 if name == TURN else self.plain.shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        width = self.arch.target_hidden
        if name == TURN:
            return rotated(np.eye(width, dtype=np.float32)[start:stop])
        if name == MASK:  # all of it: the rotation mixes the numbers of a layer
            return rotated(self.plain.read(name).reshape(-1, width)).reshape(-1)[start:stop]
        rows = self.plain.read(name, start, stop)
        shared = not self.arch.own_embedding and not self.arch.is_dflash
        if name in self._norms_before_fc() or (shared and name == _EMBEDDING_NORM):
            return np.ones_like(rows)
        if name == _FC:
            if norms := self._norms_before_fc():
                rows = rows * np.concatenate([self.plain.read(norm) for norm in norms])
            return rotated(rows.reshape(len(rows), -1, width)).reshape(rows.shape)
        if shared and name in _OF_EMBEDDINGS:
            return np.concatenate([rotated(rows[:, :width] * self.plain.read(_EMBEDDING_NORM)), rows[:, width:]], axis=1)
        return rows

    def _norms_before_fc(self) -> list[str]:
        if self.arch.norm_before_fc:
            return ["model.input_norm.weight"]
        return [f"model.fc_norm.{index}.weight" for index in range(len(self.arch.captured))] if self.arch.fc_norm else []


def rotated_arch(plain: DraftArch) -> DraftArch:
    """The draft's architecture beside a rotated target."""
    return replace(plain, turned=plain.is_dflash and not plain.own_embedding)


def rotated_draft(plain: DraftCheckpoint, target: RotatedTarget) -> RotatedDraft:
    """``plain``, for the rotated form of its target. Raises UnsupportedModel for a draft with two norms before fc, one after the other:
    only the second one's weight can be folded into fc."""
    if plain.arch.norm_before_fc and plain.arch.fc_norm:
        raise UnsupportedModel(f"{plain.path} has two norms before its fc layer — export with --no-rotation")
    return RotatedDraft(rotated_arch(plain.arch), plain.path, plain.tokens, target, plain.own_head, plain._files, plain._names, plain)
