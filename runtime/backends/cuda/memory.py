"""DeviceMemory: a GPU's buffers, uploads through a pinned staging ring, and a readback block that is copied to the host as a whole."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..base import dtype_of
from .driver import Cuda

ALIGNMENT = 256  # bytes, as TensorRT requires of every address
_RING_BYTES = 4 << 20


@dataclass(frozen=True)
class DeviceBuffer:
    """``size`` elements at the device address ``address``."""

    address: int
    size: int
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.itemsize


class DeviceMemory:
    """A Memory on a GPU. All operations are asynchronous in one stream; only ``read`` waits. ``close`` frees everything."""

    on_host = False

    def __init__(self, cuda: Cuda) -> None:
        self._cuda, self._cleanup = cuda, ExitStack()
        self._ring_address = self._allocate_pinned(_RING_BYTES)
        self._ring, self._ring_used = _host_view(self._ring_address, _RING_BYTES), 0
        self._readback: DeviceBuffer | None = None
        self._readback_copy = np.zeros(0, np.uint8)  # on the host
        self._readback_copy_address = 0
        self._readback_current = False  # whether the copy holds what the last run wrote

    def zeros(self, size: int, dtype: str) -> DeviceBuffer:
        kind = dtype_of(dtype)
        length = max(aligned(size * kind.itemsize), ALIGNMENT)
        address = self._cuda.allocate(length)
        self._cleanup.callback(self._cuda.free, address)
        self._cuda.clear(address, length)
        return DeviceBuffer(address, size, kind)

    def readback_buffers(self, sizes: Mapping[str, tuple[int, str]]) -> dict[str, DeviceBuffer]:
        if self._readback is not None:
            raise ValueError("readback_buffers may be called once")
        lengths = {name: aligned(size * np.dtype(dtype).itemsize) for name, (size, dtype) in sizes.items()}
        self._readback = self.zeros(sum(lengths.values()), "uint8")
        self._readback_copy_address = self._allocate_pinned(self._readback.size)
        self._readback_copy = _host_view(self._readback_copy_address, self._readback.size)
        buffers, start = {}, self._readback.address
        for name, (size, dtype) in sizes.items():
            buffers[name] = DeviceBuffer(start, size, np.dtype(dtype))
            start += lengths[name]
        return buffers

    def upload(self, target: int, block: np.ndarray) -> None:
        """Copy ``block``, uint8 [bytes], to the device address ``target``. The block may change as soon as this returns."""
        for start in range(0, block.size, _RING_BYTES):
            piece = block[start : start + _RING_BYTES]
            if self._ring_used + piece.size > _RING_BYTES:
                self._wait()
            offset = self._ring_used
            self._ring[offset : offset + piece.size] = piece
            self._cuda.copy(target + start, self._ring_address + offset, piece.size)
            self._ring_used = aligned(offset + piece.size)

    def write(self, buffer: DeviceBuffer, values: np.ndarray) -> None:
        self.upload(buffer.address, np.ascontiguousarray(values, buffer.dtype).reshape(-1).view(np.uint8))

    def read(self, buffer: DeviceBuffer, shape: tuple[int, ...]) -> np.ndarray:
        readback, size = self._readback, prod(shape)
        if readback is not None and 0 <= buffer.address - readback.address < readback.size:
            if not self._readback_current:
                self._cuda.copy(self._readback_copy_address, readback.address, readback.size)
                self._wait()
                self._readback_current = True
            start = buffer.address - readback.address
            return self._readback_copy[start : start + size * buffer.dtype.itemsize].view(buffer.dtype).reshape(shape)
        length = size * buffer.dtype.itemsize
        values = np.empty(length, np.uint8)
        for start in range(0, length, _RING_BYTES):
            self._wait()
            piece = min(_RING_BYTES, length - start)
            self._cuda.copy(self._ring_address, buffer.address + start, piece)
            self._wait()
            values[start : start + piece] = self._ring[:piece]
        return values.view(buffer.dtype).reshape(shape)

    def copy(self, source: DeviceBuffer, target: DeviceBuffer, start: int, size: int) -> None:
        item = target.dtype.itemsize
        self._cuda.copy(target.address + start * item, source.address, size * item)

    def invalidate_readback(self) -> None:
        """Call this when a run was put into the stream: the next read of a readback buffer then copies again."""
        self._readback_current = False

    def _wait(self) -> None:
        self._cuda.synchronize()
        self._ring_used = 0

    def _allocate_pinned(self, size: int) -> int:
        address = self._cuda.allocate_pinned(size)
        self._cleanup.callback(self._cuda.free_pinned, address)
        return address

    def close(self) -> None:
        """Free everything. May be called repeatedly."""
        self._cleanup.close()


def aligned(size: int) -> int:
    """``size`` rounded up to a multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _host_view(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
