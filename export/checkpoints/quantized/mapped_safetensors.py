"""Tensors of safetensors files in their stored types, mapped. The library itself gives numpy neither float8 nor parts of a column.

A file begins with the length of its header in eight bytes; the header is a JSON object: name -> dtype, shape and bytes behind the header.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16, float8_e4m3fn, float8_e5m2, float8_e8m0fnu

from ...errors import CheckpointError

_FLOATS: dict[str, Any] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": bfloat16}
_EIGHT_BITS: dict[str, Any] = {"F8_E4M3": float8_e4m3fn, "F8_E5M2": float8_e5m2, "F8_E8M0": float8_e8m0fnu}
_INTEGERS: dict[str, Any] = {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}
_TYPES = {name: np.dtype(kind) for name, kind in {**_FLOATS, **_EIGHT_BITS, **_INTEGERS, "BOOL": "?"}.items()}


@dataclass(frozen=True)
class _Place:
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class MappedSafetensors:
    """All tensors of some files. Raises CheckpointError for a damaged header."""

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        self._places = {name: place for file in files for name, place in _header(file).items()}

    def names(self) -> list[str]:
        return list(self._places)

    def mapped(self, name: str) -> np.ndarray:
        """A tensor in its stored type. Every call maps anew, so that pages that were read are given back with the array."""
        place = self._places.get(name)
        if place is None:
            raise CheckpointError(f"{self.path} has no tensor {name!r} — the checkpoint is incomplete or of another model")
        kind = _TYPES.get(place.dtype)
        if kind is None:
            raise CheckpointError(f"{place.file} stores {name} as {place.dtype}, which cannot be read — export from another checkpoint")
        size = int(np.prod(place.shape, dtype=np.int64)) * kind.itemsize
        if size == 0:
            return np.empty(place.shape, kind)
        try:
            content = np.memmap(place.file, np.uint8, "r", place.offset, (size,))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {place.file}: {error} — the file is truncated or damaged, download it again") from None
        return np.asarray(content).view(kind).reshape(place.shape)


def _header(file: Path) -> dict[str, _Place]:
    try:
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            entries = json.loads(content.read(length))
        return {
            name: _Place(file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"cannot read {file}: {error} — the file is truncated or damaged, download it again") from None
