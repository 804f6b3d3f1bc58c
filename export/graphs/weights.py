"""Writes the external weight file of a graph and its hash, or only counts its bytes; quantization of weights."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
from ml_dtypes import float8_e4m3fn
from onnx import StringStringEntryProto, TensorProto, helper

from runtime.backends.cpu.processor import usable_cores

from ..checkpoints.finite import is_finite
from ..checkpoints.safetensors import Weights
from ..errors import ParityError

ALIGNMENT = 4096  # both backends map the file into memory
BLOCK = 32  # inputs that share one scale in int8 and int4
CHUNK_BYTES = 1 << 20  # float32 bytes of a row block; small ones stay in the processor's cache from one numpy operation to the next
MOST_THREADS = 8  # that read and convert
Converted = TypeVar("Converted")


class WeightCount:
    """Hands out the TensorProtos that point into a weight file called ``location``, and counts its bytes from ``size``. Reads and writes
    nothing."""

    def __init__(self, location: str, size: int = 0) -> None:
        self.location, self.size = location, size

    def add(self, name: str, dtype: int, shape: tuple[int, ...], chunks: Iterable[np.ndarray]) -> TensorProto:
        """Append one tensor. ``chunks``: consecutive pieces of its bytes, which only a WeightFile iterates over."""
        offset, length = self.size + -self.size % ALIGNMENT, stored_bytes(dtype, shape)
        self.size = offset + length
        tensor = TensorProto(name=name, data_type=dtype, dims=shape, data_location=TensorProto.EXTERNAL)
        entries = {"location": self.location, "offset": str(offset), "length": str(length)}
        tensor.external_data.extend(StringStringEntryProto(key=key, value=value) for key, value in entries.items())
        return tensor


class WeightFile(WeightCount):
    """A WeightCount that also writes the tensors to ``path`` and hashes the file. Adding raises ParityError for numbers that are not finite
    in the type in which they are stored."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.name)
        self._hash = hashlib.sha256()
        self._file = path.open("wb")

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)

    def add(self, name: str, dtype: int, shape: tuple[int, ...], chunks: Iterable[np.ndarray]) -> TensorProto:
        self._append(bytes(-self.size % ALIGNMENT))
        tensor = super().add(name, dtype, shape, chunks)
        for chunk in map(np.ascontiguousarray, chunks):
            if not is_finite(chunk):
                model, option = ("draft", "--draft-precision") if self.location.startswith("draft") else ("target", "--precision")
                raise ParityError(
                    f"the exported {model}'s {name} has numbers that are not finite in {chunk.dtype} — choose another {option}"
                )
            self._append(chunk.view(np.uint8).reshape(-1).data)
        assert self._file.tell() == self.size, f"{name} is not of its shape"
        return tensor


def stored_bytes(dtype: int, shape: Sequence[int]) -> int:
    """Size of a tensor in the file in bytes. Two INT4 values share a byte."""
    count = math.prod(shape)
    return -(-count // 2) if dtype == TensorProto.INT4 else count * helper.tensor_dtype_to_np_dtype(dtype).itemsize


def row_ranges(checkpoint: Weights, name: str, chunks: int = 1) -> Iterator[tuple[int, int]]:
    """(first row, row behind the last) of the row blocks of a tensor: at most ``chunks`` times CHUNK_BYTES as float32 each."""
    shape = checkpoint.shape(name)
    step = max(1, chunks * CHUNK_BYTES // (4 * math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def row_chunks(checkpoint: Weights, name: str, chunks: int = 1) -> Iterator[np.ndarray]:
    """A tensor as float32 row blocks of at most ``chunks`` times CHUNK_BYTES."""
    for start, stop in row_ranges(checkpoint, name, chunks):
        yield checkpoint.read(name, start, stop)


def converted_rows(
    checkpoint: Weights, names: Sequence[str], convert: Callable[[np.ndarray], Converted], chunks: int = 1
) -> Iterator[Converted]:
    """``convert`` of the tensors' float32 row blocks of at most ``chunks`` times CHUNK_BYTES, in order. Threads read and convert a few
    blocks ahead: numpy and the disk leave the interpreter's lock alone meanwhile."""

    def one(name: str, start: int, stop: int) -> Converted:
        with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite, which WeightFile reports
            return convert(checkpoint.read(name, start, stop))

    blocks = [(name, *rows) for name in names for rows in row_ranges(checkpoint, name, chunks)]
    if 4 * sum(math.prod(checkpoint.shape(name)) for name in names) <= CHUNK_BYTES:  # starting threads would take longer
        yield from (one(*block) for block in blocks)
        return
    threads = min(usable_cores(), MOST_THREADS)
    waiting: deque[Future[Converted]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for block in blocks:
            if len(waiting) > threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(one, *block))
        while waiting:
            yield waiting.popleft().result()


def quantize_blocks(weight: np.ndarray, bits: int, stored: type[np.floating] = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric blocked quantization of float32 [outputs, inputs], inputs a multiple of BLOCK.

    Returns int8 values [outputs, inputs] and float32 scales [outputs, inputs / BLOCK] that the type ``stored`` holds exactly; value * scale
    approximates the weight. Zero point 0, the only form that both ONNX Runtime fuses and TensorRT builds. For 4 bits the entry of largest
    magnitude maps to -8, which uses all sixteen levels (the scheme of llama.cpp's Q4_0).
    """
    blocks = weight.reshape(weight.shape[0], -1, BLOCK)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scale = rounded_scale(peak / -8.0 if bits == 4 else np.abs(peak) / 127.0, stored)
    scale[scale == 0] = 1.0
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    values = np.clip(np.rint(blocks / scale), low, high).astype(np.int8)
    return values.reshape(weight.shape), scale[..., 0]


def rounded_scale(scale: np.ndarray, stored: type[np.floating]) -> np.ndarray:
    """``scale`` as float32 numbers that ``stored`` holds; none of them becomes zero by that."""
    if stored is np.float32:
        return scale
    smallest = np.float32(np.finfo(stored).smallest_subnormal)
    rounded = scale.astype(stored).astype(np.float32)
    return np.where((rounded == 0) & (scale != 0), np.copysign(smallest, scale), rounded)


def quantize_outputs(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 values [outputs, inputs] of float32 [outputs, inputs] and one float32 scale an output; value * scale approximates the weight."""
    scale = np.maximum(weight.max(-1), -weight.min(-1)) / np.float32(127.0)
    scale[scale == 0] = 1.0
    values = weight / scale[:, None]
    return np.rint(values, out=values).astype(np.int8), scale


def quantize_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float8 (e4m3fn) values of float32 [outputs, inputs], and one float16 scale an output; value * scale approximates the weight."""
    largest, smallest = 448.0, np.float16(2.0**-24)
    scale = np.maximum((np.abs(weight).max(-1) / largest).astype(np.float16), smallest)
    values = np.clip(weight / scale.astype(np.float32)[:, None], -largest, largest)  # a scale that was rounded down
    return values.astype(float8_e4m3fn), scale


def pack_int4(values: np.ndarray) -> np.ndarray:
    """ONNX INT4 storage: two consecutive values a byte, the first in the low half."""
    flat = values.reshape(-1).view(np.uint8) & 0x0F
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return np.asarray(flat[0::2] | (flat[1::2] << 4), np.uint8)


def pack_values(values: np.ndarray, bits: int) -> np.ndarray:
    """int8 values [outputs, n], which may be negative, as ONNX Runtime's MatMulNBits stores them: uint8 [outputs, n * bits / 8]. Zero is
    stored as half of the range; of two four-bit values in a byte the first is in the low half."""
    shifted = np.ascontiguousarray(values).view(np.uint8) + np.uint8(1 << (bits - 1))
    if bits == 8:
        return shifted
    pairs = shifted.view("<u2")  # the first value is the low byte
    return ((pairs & 0x0F) | ((pairs >> 4) & 0xF0)).astype(np.uint8)


def unpack_values(packed: np.ndarray, bits: int) -> np.ndarray:
    """The uint8 values, from 0, that `pack_values` stored."""
    return packed if bits == 8 else np.stack([packed & 0x0F, packed >> 4], axis=-1).reshape(len(packed), -1)
