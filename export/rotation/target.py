"""A target with a rotated residual stream, as in QuaRot (arXiv 2404.00456) and SpinQuant (arXiv 2405.16406).

With R orthogonal, the embedding is multiplied by R. What reads the stream takes the weight of the norm before it and R; what writes it
takes R transposed. Another orthogonal matrix stands between the values and `o`, in every head. In exact arithmetic it is the same model.

Only the inputs of `down` are rotated at run time, as no matrix before them can be: Arch.spread, a small Hadamard matrix for each block.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ..checkpoints.arch import Arch
from ..checkpoints.safetensors import Checkpoint
from ..checkpoints.target_tensors import EMBEDDING, HEAD
from ..hadamard import spread
from .orthogonal import rotated, rotated_outputs

NORM = "model.norm.weight"
_READERS = {"q_proj": "input", "k_proj": "input", "v_proj": "input", "gate_proj": "post_attention", "up_proj": "post_attention"}

_SPREAD = 32  # larger blocks are nearer to float32, but a pass takes longer (docs/lab/int8.md, "One digit")


class RotatedTarget:
    """A Checkpoint over another one. Its head is not tied, and its norms of the stream have weights of one."""

    def __init__(self, plain: Checkpoint) -> None:
        self.plain = plain
        self._written: tuple[str, np.ndarray] = ("", np.zeros(0))  # the last matrix that writes the stream; it is rotated as a whole
        self._lock = Lock()

    @property
    def arch(self) -> Arch:
        plain = self.plain.arch
        return replace(plain, tied_head=False, spread=min(_SPREAD, plain.intermediate & -plain.intermediate))

    @property
    def path(self) -> Path:
        return self.plain.path

    @property
    def notes(self) -> tuple[str, ...]:
        return self.plain.notes

    def fingerprint(self) -> list[list[Any]]:
        return self.plain.fingerprint()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.plain.shape(self._source(name))

    def _source(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self.plain.arch.tied_head else name

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        part = name.split(".")[-2]
        if name == NORM or part.endswith("_layernorm"):
            return np.ones_like(self.plain.read(name, start, stop))
        if name == EMBEDDING:
            return rotated(self.plain.read(name, start, stop))
        if name == HEAD:
            return rotated(self.plain.read(self._source(name), start, stop) * self.plain.read(NORM))
        if part in ("o_proj", "down_proj"):
            return self._outputs(name)[start:stop]
        if part == "v_proj":
            return self._values(name, start, stop)
        return self._inputs(name, start, stop)

    def _inputs(self, name: str, start: int, stop: int | None) -> np.ndarray:
        """Rows of a matrix that reads the stream; anything else as it is."""
        rows = self.plain.read(name, start, stop)
        layer, part, kind = name.rsplit(".", 3)[0], name.split(".")[-2], name.split(".")[-1]
        if part not in _READERS or kind == "bias":
            return rows
        return rotated(rows * self.plain.read(f"{layer}.{_READERS[part]}_layernorm.weight"))

    def _values(self, name: str, start: int, stop: int | None) -> np.ndarray:
        """Rows of the matrix or bias of values. Those of a head are rotated among themselves, so whole heads are read."""
        width, end = self.arch.head_dim, self.shape(name)[0] if stop is None else min(stop, self.shape(name)[0])
        first, last = start // width * width, -(-end // width) * width
        rows = self._inputs(name, first, last)
        heads = rows.reshape(-1, width, *rows.shape[1:])
        return np.moveaxis(rotated(np.moveaxis(heads, 1, -1)), -1, 1).reshape(rows.shape)[start - first : end - first]

    def _outputs(self, name: str) -> np.ndarray:
        """A matrix or bias that writes the stream."""
        with self._lock:
            if self._written[0] != name:
                weight = self.plain.read(name)
                if name.endswith("o_proj.weight"):
                    weight = rotated(weight.reshape(len(weight), -1, self.arch.head_dim)).reshape(weight.shape)
                if name.endswith("down_proj.weight"):
                    weight = spread(weight, self.arch.spread)
                self._written = name, np.ascontiguousarray(rotated_outputs(weight))
            return self._written[1]
