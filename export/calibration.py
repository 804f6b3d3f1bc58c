"""How the inputs of a target's matrices vary together in usual text, for rounding with error feedback (export/graphs/int8/feedback.py).

The texts go through the target layer by layer, in numpy and float32, so that memory stays small for any model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime.errors import PromptError
from runtime.text.tokenizer import Tokenizer

from .checkpoints.arch import Arch
from .checkpoints.safetensors import Checkpoint
from .checkpoints.target_tensors import EMBEDDING
from .graphs.int8.feedback import inverse_root
from .parity.reference import decoder_layer, norm

_TEXT = 256
PROMPTS = Path(__file__).with_name("prompts.txt")
"""Prompts of several kinds, a line each: what resps-tune tunes with if no others are given, too."""


class HeldLayer:
    """Weights that stay in memory after they were first read, until the next ``begin``."""

    def __init__(self, source: Checkpoint) -> None:
        self._source = source
        self._held: dict[str, np.ndarray] = {}

    @property
    def path(self) -> Path:
        return self._source.path

    def begin(self) -> None:
        """Forget everything."""
        self._held.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if name not in self._held:
            self._held[name] = self._source.read(name)
        return self._held[name][start:stop]

    def fingerprint(self) -> list[list[object]]:
        return self._source.fingerprint()


class InputMoments:
    """The Calibration of a checkpoint on ``texts``, token ids each. Layers are computed when they are asked for, one after the other."""

    def __init__(self, checkpoint: Checkpoint, texts: Sequence[Sequence[int]]) -> None:
        self._checkpoint, self._weights = checkpoint, HeldLayer(checkpoint)
        self._streams = [np.concatenate([checkpoint.read(EMBEDDING, token, token + 1) for token in text]) for text in texts]
        self._layer = -1
        self._moments: dict[str, np.ndarray] = {}

    def inverse_root(self, stem: str) -> np.ndarray:
        name, _, matrix = stem.removeprefix("layers.").partition(".")
        layer = int(name) if matrix else self._checkpoint.arch.layers  # "head" comes behind the last layer
        while self._layer < layer:
            self._next_layer()
        return inverse_root(self._moments[(matrix or stem).split(".")[0]])  # a piece of a joined matrix has its number behind the name

    def _next_layer(self) -> None:
        arch, inputs = self._checkpoint.arch, defaultdict[str, list[np.ndarray]](list)
        self._layer, prefix = self._layer + 1, f"model.layers.{self._layer + 1}."
        self._weights.begin()

        for index, stream in enumerate(self._streams):
            if self._layer == arch.layers:
                inputs["head"].append(norm(self._checkpoint, arch, "model.norm", stream))
                continue
            cos, sin = (table[:, None, :] for table in arch.rope.tables(arch.head_dim, len(stream)))
            normed = norm(self._weights, arch, prefix + "input_layernorm", stream)
            mask, seen = np.tri(len(stream), dtype=bool), lambda matrix, rows: inputs[matrix].append(rows)
            self._streams[index] = decoder_layer(self._weights, arch, prefix, normed, stream, cos, sin, mask, seen)
        joined = {matrix: np.concatenate(parts) for matrix, parts in inputs.items()}
        self._moments = {matrix: (rows.T @ rows).astype(np.float64) for matrix, rows in joined.items()}


def own_texts(tokenizer: Tokenizer, arch: Arch) -> list[list[int]]:
    """The built-in prompts as token ids, rendered as chats if the model has a template for them, and joined to texts of _TEXT tokens."""
    joined: list[int] = []
    for line in PROMPTS.read_text(encoding="utf-8").splitlines():
        try:
            tokens = tokenizer.encode([{"role": "user", "content": line}])
        except PromptError:  # no template, or one that needs more than this
            tokens = tokenizer.encode(line)
        joined += [token for token in tokens if token < arch.vocab]
    length = min(_TEXT, arch.longest_context)
    return [joined[start : start + length] for start in range(0, len(joined), length)]
