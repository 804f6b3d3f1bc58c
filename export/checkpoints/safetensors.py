"""Reading weights: the protocols that every checkpoint follows, and Hugging Face directories with safetensors or pickles.

Tensors have their Hugging Face names and are read a slice at a time, so that memory stays small whatever the model's size.
"""

from __future__ import annotations

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np

from ..errors import CheckpointError
from .arch import Arch, arch_from_config
from .shard import Shard

PICKLES = "pytorch_model*.bin"


class Weights(Protocol):
    """Named tensors, read a slice at a time."""

    @property
    def path(self) -> Path:
        """The file or directory that holds them."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. Raises CheckpointError if there is none of this name."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of a tensor as float32. Only that slice is in memory. Raises CheckpointError if there is none of this name."""

    def fingerprint(self) -> list[list[Any]]:
        """[file name, size, mtime_ns] of every file. If it changes, an engine that was exported from it is out of date."""


class Checkpoint(Weights, Protocol):
    """The weights and the architecture of a target model."""

    @property
    def arch(self) -> Arch:
        """Read from the config."""


class Files(Weights, Protocol):
    """The weight files of a directory, whatever model they belong to."""

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors, sorted by name."""

    def names(self) -> list[str]:
        """Names of all tensors."""


def shards(directory: Path, index_name: str, pattern: str) -> list[Path]:
    """The weight files of a Hugging Face directory: those that its index lists, else those that match ``pattern``.

    Raises CheckpointError if a file is missing or the index is damaged.
    """
    index = directory / index_name
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{index} does not say which file holds which tensor — download it again")
        names = sorted({Path(name).name for name in weight_map.values()})
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{directory} lacks {', '.join(missing[:3])} ({len(missing)} of {len(names)} weight files) — download the checkpoint again"
            )
        return [directory / name for name in names]
    files = sorted(directory.glob(pattern))
    if not files:
        raise CheckpointError(f"{directory} holds no weights ({pattern}) — give a Hugging Face directory, a .gguf file or a hub id")
    return files


def config_files(directory: Path) -> list[Path]:
    """The files that configure model, tokenizer and chat template; they belong to a checkpoint's fingerprint."""
    return [file for file in directory.iterdir() if file.is_file() and (file.suffix in (".json", ".jinja") or file.stem == "tokenizer")]


def files_fingerprint(files: list[Path]) -> list[list[Any]]:
    """[file name, size, mtime_ns] of every file, sorted."""
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)]


class SafetensorsFiles:
    """One or several safetensors files of a directory. Their headers are checked by the safetensors package."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.files = shards(directory, "model.safetensors.index.json", "*.safetensors")
        self._shard_of: dict[str, Shard] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in self.files:
            with _open(file) as weights:
                shard = Shard(file)
                for name in weights.keys():  # noqa: SIM118 - not a dict
                    self._shard_of[name] = shard
                    self._shapes[name] = tuple(weights.get_slice(name).get_shape())

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise CheckpointError(f"{self.path} has no tensor {name!r} — the checkpoint is incomplete or of another model")
        return self._shapes[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        self.shape(name)
        shard = self._shard_of[name]
        if shard.can_read(name):
            return shard.read(name, start, stop)
        with _open(shard.file) as weights:
            return np.asarray(weights.get_slice(name)[start:stop]).astype(np.float32)

    def fingerprint(self) -> list[list[Any]]:
        return files_fingerprint([*self.files, *config_files(self.path)])


class TorchFiles:
    """Pickled weights (pytorch_model*.bin), as some older models have. Needs torch. Only tensors are unpickled; files are mapped."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.files = shards(directory, "pytorch_model.bin.index.json", PICKLES)
        try:
            import torch
        except ImportError:
            raise CheckpointError(f"{directory} has pickled weights, which need torch to read — pip install torch") from None
        self._tensors: dict[str, Any] = {}
        for file in self.files:
            try:
                self._tensors.update(torch.load(file, map_location="cpu", mmap=True, weights_only=True))
            except UnpicklingError:  # torch's own message advises loading without protection, so it is not shown
                raise CheckpointError(f"cannot read {file}: it is damaged or holds more than tensors — get its safetensors") from None
            except Exception as error:  # on a damaged file torch may raise any type
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise CheckpointError(f"cannot read {file}: {reason} — the file is truncated or damaged, download it again") from None

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} has no tensor {name!r} — the checkpoint is incomplete or of another model")
        return tuple(self._tensors[name].shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        self.shape(name)
        return np.asarray(self._tensors[name][start:stop].float().numpy())

    def fingerprint(self) -> list[list[Any]]:
        return files_fingerprint([*self.files, *config_files(self.path)])


class SafetensorsCheckpoint(SafetensorsFiles):
    """A target as a Hugging Face directory with config.json and safetensors."""

    def __init__(self, directory: Path) -> None:
        self.arch = arch_from_config(read_json(directory / "config.json"))
        super().__init__(directory)


class TorchCheckpoint(TorchFiles):
    """A target as a Hugging Face directory with config.json and pickles."""

    def __init__(self, directory: Path) -> None:
        self.arch = arch_from_config(read_json(directory / "config.json"))
        super().__init__(directory)


def open_files(directory: Path) -> Files:
    """The weight files of a Hugging Face directory. Safetensors are preferred if it has both kinds."""
    return TorchFiles(directory) if has_only_pickles(directory) else SafetensorsFiles(directory)


def has_only_pickles(directory: Path) -> bool:
    """Whether a directory has pickled weights and no safetensors."""
    return not list(directory.glob("*.safetensors*")) and bool(list(directory.glob(PICKLES)))


def _open(file: Path) -> Any:
    import ml_dtypes  # noqa: F401 - registers bfloat16 with numpy, which safetensors needs
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {file}: {error} — the file is truncated or damaged, download it again") from None


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError if it is missing, unreadable or not an object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing — give a directory with a complete checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error} — download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is not a JSON object — download it again")
    return value
