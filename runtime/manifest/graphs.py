"""Graphs and files as manifest.json lists them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FILE_NAME = "manifest.json"
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """dtype is numpy's name; a string in ``shape`` is a size chosen per call."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """One ONNX graph and its tensors. ``plan``: the TensorRT engine built from it; ``profiles``: for each of its optimization profiles,
    the least, best and largest value of every size that is chosen per call. ``fused``: the same graph with ONNX Runtime's own operators,
    for its CPU."""

    file: str
    plan: str | None
    profiles: tuple[Mapping[str, tuple[int, int, int]], ...]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    fused: str | None = None


@dataclass(frozen=True)
class File:
    """A file of the directory, its size in bytes and its hash."""

    sha256: str
    bytes: int


def sha256_of(*paths: Path) -> str:
    """Hex digest of files, one after the other, read in small pieces."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
    return digest.hexdigest()
