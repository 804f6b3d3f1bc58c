"""Pickled weights (pytorch_model*.bin), as some older models have. Needs torch. Only tensors are unpickled; files are mapped,
except those of torch before 1.6, which are no zip archives."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import CheckpointError, UnsupportedModel
from .finite import expect_finite
from .lfs import refuse_pointer
from .safetensors import config_files, files_fingerprint, refuse_duplicate

_PLAIN = (int, float, str, type(None))  # beside tensors they are ignored, such as the number of an epoch


class TorchFiles:
    """One or several pickled files of a directory."""

    def __init__(self, directory: Path, files: list[Path]) -> None:
        self.path, self.files = directory, files
        self._tensors: dict[str, Any] = {}
        self._file_of: dict[str, Path] = {}
        for file in files:
            for name, tensor in _load(file).items():
                refuse_duplicate(name, file, self._file_of.get(name))
                self._tensors[name], self._file_of[name] = tensor, file

    def names(self) -> list[str]:
        return list(self._tensors)

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} has no tensor {name!r} — the checkpoint is incomplete or of another model")
        return self._tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensor(name).shape)

    def stored_type(self, name: str) -> np.dtype[Any]:
        return self.stored(name, 0, 0).dtype

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        import torch

        tensor = self._tensor(name)
        rows = tensor[start:stop] if tensor.dim() else tensor
        if rows.dtype == torch.bfloat16:
            return np.asarray(rows.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
        return np.asarray((rows.float() if rows.dtype.itemsize == 1 and rows.is_floating_point() else rows).numpy())

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        numbers = self.stored(name, start, stop).astype(np.float32)
        expect_finite(numbers, name, self._file_of[name])
        return numbers

    def fingerprint(self) -> list[list[Any]]:
        return files_fingerprint([*self.files, *config_files(self.path)])


def _load(file: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise CheckpointError(f"{file} holds pickled weights, which need torch to read — pip install torch") from None
    try:
        refuse_pointer(file)
        found = torch.load(file, map_location="cpu", mmap=_is_archive(file), weights_only=True)
    except CheckpointError:
        raise
    except UnpicklingError:  # torch's own message advises loading without protection, so it is not shown
        raise CheckpointError(f"cannot read {file}: it is damaged or holds more than tensors — get its safetensors") from None
    except Exception as error:  # on a damaged file torch may raise any type
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"cannot read {file}: {reason} — the file is truncated or damaged, download it again") from None
    if not isinstance(found, dict) or not all(isinstance(value, (torch.Tensor, *_PLAIN)) for value in found.values()):
        raise CheckpointError(f"cannot read {file}: it is not a table of tensors — get the model's safetensors")
    return {name: _dense(name, tensor, file) for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def _is_archive(file: Path) -> bool:
    """Whether torch would read a file as a zip archive, whole or not."""
    with file.open("rb") as content:
        return content.read(4) == b"PK\x03\x04"


def _dense(name: str, tensor: Any, file: Path) -> Any:
    """The numbers of a tensor or parameter. Raises UnsupportedModel for other forms of it."""
    import torch

    form = str(tensor.layout).removeprefix("torch.") if tensor.layout != torch.strided else tensor.dtype
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise UnsupportedModel(f"{file} stores {name} as {form}, which cannot be read — get the model's safetensors")
    return tensor.detach()
