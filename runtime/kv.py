"""The KV cache of one model: a single allocation, and the only place that knows how much of it is committed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class KVCache:
    """Keys and values, [layers, 2, 1, Hkv, capacity, D]; slots below ``length`` are committed."""

    def __init__(self, layers: int, kv_heads: int, capacity: int, head_dim: int, dtype: np.dtype) -> None:
        # np.zeros takes pages only when they are written: unused capacity costs no memory.
        self._buffer = np.zeros((layers, 2, 1, kv_heads, capacity, head_dim), dtype)
        self.capacity = capacity
        self._length = 0

    @property
    def length(self) -> int:
        """Committed slots."""
        return self._length

    def tensors(self) -> dict[str, np.ndarray]:
        """Graph input and output names -> the same buffer, [1, Hkv, capacity, D]: engines update it in place."""
        kinds = ((layer, index, kind) for layer in range(len(self._buffer)) for index, kind in enumerate(("key", "value")))
        return {f"{side}.{layer}.{kind}": self._buffer[layer, index] for layer, index, kind in kinds for side in ("past", "present")}

    def commit(self, path: Sequence[int]) -> None:
        """Keep the rows ``path`` of the last pass (ascending, starting at row 0), moved down to follow the committed slots."""
        start, moved = self._length, 0
        while moved < len(path) and path[moved] == moved:
            moved += 1
        if moved < len(path):
            source = [start + row for row in path[moved:]]
            self._buffer[..., start + moved : start + len(path), :] = self._buffer[..., source, :]
        self._length = start + len(path)

    def truncate(self, length: int) -> None:
        """Forget everything from slot ``length`` on. Absolute, hence safe to repeat."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate {self._length} committed slots to {length}")
        self._length = length

    def rows(self) -> np.ndarray:
        """The committed part, [layers, 2, 1, Hkv, length, D]; a view."""
        return self._buffer[..., : self._length, :]
