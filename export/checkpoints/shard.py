"""Reads rows of tensors from a safetensors file with plain reads: in any number of threads, and without mapping the file, whose mapped
pages would count as this process's memory."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from ..errors import CheckpointError

_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(bfloat16)}


class Shard:
    """One file. ``header``: {tensor: {dtype, shape, data_offsets}}, as the format defines it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            self.header: dict[str, Any] = json.loads(opened.read(length))
        self._begin = 8 + length

    def can_read(self, name: str) -> bool:
        """Whether the tensor has a type that this class reads."""
        return self.header[name]["dtype"] in _TYPES

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) as float32. Raises CheckpointError if the file is shorter than its header says."""
        entry = self.header[name]
        kind, shape = _TYPES[entry["dtype"]], entry["shape"]
        first, end, _ = slice(start, stop).indices(shape[0]) if shape else (0, 1, 1)
        row = math.prod(shape[1:])
        values = np.empty(max(0, end - first) * row, kind)
        self._fill(values.view(np.uint8), self._begin + entry["data_offsets"][0] + first * row * kind.itemsize)
        return values.reshape([max(0, end - first), *shape[1:]] if shape else []).astype(np.float32, copy=False)

    def _fill(self, buffer: np.ndarray, offset: int) -> None:
        left = buffer.data
        with self.file.open("rb", buffering=0) as opened:
            while left:
                count = os.preadv(opened.fileno(), [left], offset)
                if count == 0:
                    raise CheckpointError(f"cannot read {self.file}: it ends early — the file is truncated or damaged, download it again")
                left, offset = left[count:], offset + count
