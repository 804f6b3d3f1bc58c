"""HostMemory: the CPU backend's buffers, which are numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class HostMemory:
    """A Memory of numpy arrays. Reads return views and copy nothing."""

    on_host = True

    def zeros(self, size: int, dtype: str) -> np.ndarray:
        return np.zeros(size, dtype)

    def readback_buffers(self, sizes: Mapping[str, tuple[int, str]]) -> dict[str, np.ndarray]:
        return {name: np.zeros(size, dtype) for name, (size, dtype) in sizes.items()}

    def write(self, buffer: np.ndarray, values: np.ndarray) -> None:
        buffer[: values.size] = values.reshape(-1)

    def read(self, buffer: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return buffer[: int(np.prod(shape))].reshape(shape)

    def copy(self, source: np.ndarray, target: np.ndarray, start: int, size: int) -> None:
        target[start : start + size] = source[:size]
