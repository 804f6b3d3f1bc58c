"""The entries of manifest.json for graphs and files, and the hash of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FILE_NAME = "manifest.json"
PAGE_SLOTS = 128
"""Slots of a page of the cache, in the graphs for a CPU that compute several requests in one pass."""
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """One tensor of a graph. ``dtype``: numpy's name. ``shape``: a string is a symbolic dimension, whose size is set per call."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """One ONNX graph and its tensors. ``plan``: the TensorRT plan built from it. ``profiles``: for each optimization profile of the plan,
    the minimum, optimum and maximum of every symbolic dimension. ``fused``: the same graph with ONNX Runtime's own operators, for the
    CPU."""

    file: str
    plan: str | None
    profiles: tuple[Mapping[str, tuple[int, int, int]], ...]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    fused: str | None = None

    @property
    def page_slots(self) -> int:
        """Slots of a page of the cache, in a graph with lanes. With TensorRT a page is a whole lane."""
        return int(self.inputs["past.0.key"].shape[2])


@dataclass(frozen=True)
class File:
    """Hash and size of a file in the directory."""

    sha256: str
    bytes: int


def sha256_of(*paths: Path) -> str:
    """The SHA-256 hex digest of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
    return digest.hexdigest()
