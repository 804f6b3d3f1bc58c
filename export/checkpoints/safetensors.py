"""Reading weights: the protocols that every checkpoint follows, and Hugging Face directories with safetensors.

Tensors have their Hugging Face names and are read a slice at a time, so that memory stays small whatever the model's size.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from ..errors import CheckpointError, UnsupportedModel
from .arch import Arch
from .finite import expect_finite
from .lfs import refuse_pointer


class Weights(Protocol):
    """Named tensors, read a slice at a time."""

    @property
    def path(self) -> Path:
        """The file or directory that holds them."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. Raises CheckpointError if there is none of this name."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of a tensor as float32. Only that slice is in memory. Raises CheckpointError if there is none of this name, or
        if one of the numbers is not finite."""

    def fingerprint(self) -> list[list[Any]]:
        """[file name, size, mtime_ns, hash of its place] of every file. If it changes, an engine that was exported from it is out of
        date."""


class Checkpoint(Weights, Protocol):
    """The weights and the architecture of a target model."""

    @property
    def arch(self) -> Arch:
        """Read from the config."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how the weights were read, a line each."""


class Files(Weights, Protocol):
    """The weight files of a directory, whatever model they belong to."""

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors, sorted by name."""

    def names(self) -> list[str]:
        """Names of all tensors."""

    def stored_type(self, name: str) -> np.dtype[Any]:
        """The type in which a tensor is stored."""

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of a tensor in its stored type."""


_TYPES: Mapping[str, np.dtype[Any]] = {
    **{name: np.dtype(kind) for name, kind in (("F64", "f8"), ("F32", "f4"), ("F16", "f2"), ("BOOL", "?"))},
    **{f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}


@dataclass(frozen=True)
class _Tensor:
    """``type``: as safetensors spells it. ``offset``: of its first byte in the file."""

    file: Path
    type: str
    shape: tuple[int, ...]
    offset: int


class SafetensorsFiles:
    """One or several safetensors files of a directory. A file is opened anew for every read, so that memory stays at one slice."""

    def __init__(self, directory: Path, files: list[Path]) -> None:
        self.path, self.files = directory, files
        self._tensors: dict[str, _Tensor] = {}
        for file in self.files:
            for name, tensor in _header(file).items():
                refuse_duplicate(name, file, self._tensors[name].file if name in self._tensors else None)
                self._tensors[name] = tensor

    def names(self) -> list[str]:
        return list(self._tensors)

    def _tensor(self, name: str) -> _Tensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} has no tensor {name!r} — the checkpoint is incomplete or of another model")
        return self._tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).shape

    def stored_type(self, name: str) -> np.dtype[Any]:
        tensor = self._tensor(name)
        if tensor.type not in _TYPES:
            raise UnsupportedModel(
                f"{tensor.file} stores {name} as {tensor.type}, which cannot be read — export from the unquantized checkpoint"
            )
        return _TYPES[tensor.type]

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        tensor, kind = self._tensor(name), self.stored_type(name)
        rows, row = (range(tensor.shape[0])[start:stop], tensor.shape[1:]) if tensor.shape else (range(1), ())
        count, first = len(rows) * math.prod(row), rows.start * math.prod(row)
        try:
            with tensor.file.open("rb") as content:
                found = np.fromfile(content, kind, count, offset=tensor.offset + first * kind.itemsize)
        except OSError as error:
            raise _damaged(tensor.file, error) from None
        if found.size != count:
            raise _damaged(tensor.file, f"it ends in {name}")
        return found.reshape(len(rows), *row) if tensor.shape else found.reshape(())

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        numbers = self.stored(name, start, stop).astype(np.float32, copy=False)
        expect_finite(numbers, name, self._tensor(name).file)
        return numbers

    def fingerprint(self) -> list[list[Any]]:
        return files_fingerprint([*self.files, *config_files(self.path)])


def refuse_duplicate(name: str, file: Path, other: Path | None) -> None:
    """Raises CheckpointError if a tensor of one file is in the ``other`` too."""
    if other is not None:
        raise CheckpointError(f"{name} is in {other} and in {file.name} — move away the file that does not belong to the checkpoint")


def _header(file: Path) -> dict[str, _Tensor]:
    """The tensors of a file. Raises CheckpointError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        refuse_pointer(file)
        with safe_open(file, framework="np"):  # checks sizes, types and offsets
            pass
        with file.open("rb") as content:
            size = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(file, error) from None
    header.pop("__metadata__", None)
    return {
        name: _Tensor(file, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0]) for name, entry in header.items()
    }


def _damaged(file: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"cannot read {file}: {reason} — the file is truncated or damaged, download it again")


def config_files(directory: Path) -> list[Path]:
    """The files that configure model, tokenizer and chat template; they belong to a checkpoint's fingerprint."""
    kinds = (".json", ".jinja", ".model", ".txt")
    return [file for file in (*directory.iterdir(), *directory.glob("*/*.jinja")) if file.is_file() and file.suffix in kinds]


def files_fingerprint(files: list[Path]) -> list[list[Any]]:
    """[file name, size, mtime_ns, hash of its place] of every file, sorted."""
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns, _place(file)] for file in sorted(files)]


def _place(file: Path) -> str:
    """Hash of a file's path, device, inode and the time of the inode's last change, for a file of the same name, size and mtime is not
    always the same: copies may keep the mtime, and tools may set it (as in runtime/manifest/believed.py)."""
    stat = file.stat()
    seen = [str(file.resolve()), stat.st_dev, stat.st_ino, stat.st_ctime_ns]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError if it is missing, a Git LFS pointer, unreadable or not an object."""
    try:
        refuse_pointer(file)
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing — give a directory with a complete checkpoint") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {file}: {error} — download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is not a JSON object — download it again")
    return value


def optional_json(file: Path) -> dict[str, Any]:
    """The same; empty if there is no such file."""
    return read_json(file) if file.is_file() else {}
