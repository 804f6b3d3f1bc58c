"""The target once more in numpy, unquantized, over answers that are known: the streams between its layers, and what it would choose."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..calibration import HeldLayer
from ..checkpoints.safetensors import Checkpoint
from ..checkpoints.target_tensors import EMBEDDING
from ..graphs.weights import row_chunks
from ..parity.reference import decoder_layer, norm
from .evidence import Progress


@dataclass(frozen=True)
class Streams:
    """Of each text: ``entering``: the residual stream [n, H] that enters a layer, by layer; ``choices`` [n]: the preferred next tokens."""

    entering: Mapping[int, Sequence[np.ndarray]]
    choices: Sequence[np.ndarray]

    def features(self, layers: Sequence[int]) -> list[np.ndarray]:
        """[n, F] of each text, as a draft with these captured layers reads them."""
        return [np.concatenate(parts, axis=-1) for parts in zip(*(self.entering[layer] for layer in layers), strict=True)]


def target_streams(checkpoint: Checkpoint, texts: Sequence[np.ndarray], wanted: Collection[int], progress: Progress) -> Streams:
    """Run ``texts`` (token ids [n] each) through the checkpoint layer by layer, so that memory stays small for any model."""
    arch, weights = checkpoint.arch, HeldLayer(checkpoint)
    streams = [np.concatenate([checkpoint.read(EMBEDDING, int(token), int(token) + 1) for token in text]) for text in texts]
    found = {}
    for layer in range(arch.layers):
        progress("computing the target's layers", layer, arch.layers)
        if layer in wanted:
            found[layer] = list(streams)
        weights.begin()
        prefix = f"model.layers.{layer}."
        for index, stream in enumerate(streams):
            cos, sin = (table[:, None, :] for table in arch.rope.tables(arch.head_dim, len(stream)))
            normed = norm(weights, arch, prefix + "input_layernorm", stream)
            streams[index] = decoder_layer(weights, arch, prefix, normed, stream, cos, sin, np.tri(len(stream), dtype=bool))
    if arch.layers in wanted:
        found[arch.layers] = list(streams)
    lengths = np.cumsum([len(stream) for stream in streams])[:-1]
    choices = _choices(checkpoint, norm(checkpoint, arch, "model.norm", np.concatenate(streams)))
    progress("computing the target's layers", arch.layers, arch.layers)
    return Streams(found, np.split(choices, lengths))


def _choices(checkpoint: Checkpoint, final: np.ndarray) -> np.ndarray:
    """The most probable tokens [n] after the rows ``final`` [n, H]. The logits of all rows together would take gigabytes."""
    best, choices, start = np.full(len(final), -np.inf), np.zeros(len(final), np.int64), 0
    for part in row_chunks(checkpoint, EMBEDDING if checkpoint.arch.tied_head else "lm_head.weight", chunks=4):
        logits = final @ part.T
        highest = logits.max(-1)
        choices = np.where(highest > best, start + logits.argmax(-1), choices)
        best, start = np.maximum(best, highest), start + len(part)
    return choices
