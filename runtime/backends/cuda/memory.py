"""Memory of a GPU: named buffers, uploads through a pinned ring, and one mailbox that comes down as a whole."""

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

ALIGNMENT = 256  # bytes; what TensorRT asks of every address
_RING_BYTES = 4 << 20


@dataclass(frozen=True)
class DeviceBuffer:
    """``size`` elements at ``address``."""

    address: int
    size: int
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.itemsize


class DeviceMemory:
    """Everything is asynchronous in one stream; only ``read`` waits. All of it is freed by ``close``."""

    on_host = False

    def __init__(self, cuda: Cuda) -> None:
        self._cuda, self._cleanup = cuda, ExitStack()
        self._ring_address = self._pinned(_RING_BYTES)
        self._ring, self._used = _host_view(self._ring_address, _RING_BYTES), 0
        self._mail: DeviceBuffer | None = None
        self._mirror = np.zeros(0, np.uint8)
        self._mirror_address = 0
        self._fresh = False

    def zeros(self, size: int, dtype: str) -> DeviceBuffer:
        kind = dtype_of(dtype)
        length = max(aligned(size * kind.itemsize), ALIGNMENT)
        address = self._cuda.allocate(length)
        self._cleanup.callback(self._cuda.free, address)
        self._cuda.clear(address, length)
        return DeviceBuffer(address, size, kind)

    def mailbox(self, sizes: Mapping[str, tuple[int, str]]) -> dict[str, DeviceBuffer]:
        if self._mail is not None:
            raise ValueError("there is one mailbox")
        lengths = {name: aligned(size * np.dtype(dtype).itemsize) for name, (size, dtype) in sizes.items()}
        self._mail = self.zeros(sum(lengths.values()), "uint8")
        self._mirror_address = self._pinned(self._mail.size)
        self._mirror = _host_view(self._mirror_address, self._mail.size)
        buffers, start = {}, self._mail.address
        for name, (size, dtype) in sizes.items():
            buffers[name] = DeviceBuffer(start, size, np.dtype(dtype))
            start += lengths[name]
        return buffers

    def upload(self, target: int, block: np.ndarray) -> None:
        """Copy uint8 ``block`` to an address. It may change as soon as this returns."""
        for start in range(0, block.size, _RING_BYTES):
            piece = block[start : start + _RING_BYTES]
            if self._used + piece.size > _RING_BYTES:
                self._wait()
            place = self._used
            self._ring[place : place + piece.size] = piece
            self._cuda.copy(target + start, self._ring_address + place, piece.size)
            self._used = aligned(place + piece.size)

    def write(self, buffer: DeviceBuffer, values: np.ndarray) -> None:
        self.upload(buffer.address, np.ascontiguousarray(values, buffer.dtype).reshape(-1).view(np.uint8))

    def read(self, buffer: DeviceBuffer, shape: tuple[int, ...]) -> np.ndarray:
        mail, size = self._mail, prod(shape)
        if mail is not None and 0 <= buffer.address - mail.address < mail.size:
            if not self._fresh:
                self._cuda.copy(self._mirror_address, mail.address, mail.size)
                self._wait()
                self._fresh = True
            start = buffer.address - mail.address
            return self._mirror[start : start + size * buffer.dtype.itemsize].view(buffer.dtype).reshape(shape)
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

    def ran(self) -> None:
        """Something was put into the stream that may write: what the host saw is old."""
        self._fresh = False

    def _wait(self) -> None:
        self._cuda.synchronize()
        self._used = 0

    def _pinned(self, size: int) -> int:
        address = self._cuda.allocate_pinned(size)
        self._cleanup.callback(self._cuda.free_pinned, address)
        return address

    def close(self) -> None:
        """May be repeated."""
        self._cleanup.close()


def aligned(size: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _host_view(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
