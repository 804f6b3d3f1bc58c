"""Where weights come from: one protocol, tensors under their Hugging Face names, read a slice at a time."""

from __future__ import annotations

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np

from ..errors import CheckpointError
from .arch import Arch, arch_from_config

PICKLES = "pytorch_model*.bin"


class Weights(Protocol):
    """Named tensors, read a slice at a time."""

    @property
    def path(self) -> Path:
        """Where they lie."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; raises CheckpointError when it is not there."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of a tensor as float32. Only that slice is in memory."""

    def fingerprint(self) -> list[list[Any]]:
        """[file name, size, mtime_ns] of every file: what makes an existing engine directory stale."""


class Checkpoint(Weights, Protocol):
    """The weights of one target model."""

    @property
    def arch(self) -> Arch:
        """What the config says."""


class Files(Weights, Protocol):
    """The weight files of a directory."""

    @property
    def files(self) -> list[Path]:
        """Where the tensors are, in the order of their names."""

    def names(self) -> list[str]:
        """Every tensor."""


def shards(directory: Path, index_name: str, pattern: str) -> list[Path]:
    """The weight files of an HF directory, by its index if it has one; raises CheckpointError when one is missing."""
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
        raise CheckpointError(f"{directory} holds no weights ({pattern}) — give an HF directory, a .gguf file or a hub id")
    return files


def settings(directory: Path) -> list[Path]:
    """The files of an HF directory that configure model, tokenizer and chat template: an engine is stale when one changes."""
    return [file for file in directory.iterdir() if file.is_file() and (file.suffix in (".json", ".jinja") or file.stem == "tokenizer")]


def files_fingerprint(files: list[Path]) -> list[list[Any]]:
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)]


class SafetensorsFiles:
    """One or several safetensors files of a directory.

    A file is opened anew for every read, so that the pages it mapped are given back: memory stays at one slice
    however large the checkpoint is.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.files = shards(directory, "model.safetensors.index.json", "*.safetensors")
        self._where: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in self.files:
            with _opened(file) as weights:
                for name in weights.keys():  # noqa: SIM118 - not a dict
                    self._where[name] = file
                    self._shapes[name] = tuple(weights.get_slice(name).get_shape())

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise CheckpointError(f"{self.path} has no tensor {name!r} — the checkpoint is incomplete or of another model")
        return self._shapes[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        self.shape(name)
        with _opened(self._where[name]) as weights:
            return np.asarray(weights.get_slice(name)[start:stop]).astype(np.float32)

    def fingerprint(self) -> list[list[Any]]:
        return files_fingerprint([*self.files, *settings(self.path)])


class TorchFiles:
    """Pickled weights (pytorch_model*.bin), as some older models have. Needs torch; loads tensors only, mapped."""

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
            except UnpicklingError:  # its own text advises to load the file without protection
                raise CheckpointError(f"cannot read {file}: it is damaged or holds more than tensors — get its safetensors") from None
            except Exception as error:  # torch raises whatever the damage leads it to
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
        return files_fingerprint([*self.files, *settings(self.path)])


class SafetensorsCheckpoint(SafetensorsFiles):
    """An HF directory: config.json and safetensors."""

    def __init__(self, directory: Path) -> None:
        self.arch = arch_from_config(read_json(directory / "config.json"))
        super().__init__(directory)


class TorchCheckpoint(TorchFiles):
    """An HF directory: config.json and pickles."""

    def __init__(self, directory: Path) -> None:
        self.arch = arch_from_config(read_json(directory / "config.json"))
        super().__init__(directory)


def files_of(directory: Path) -> Files:
    """The weight files of an HF directory, safetensors where there are both kinds."""
    return TorchFiles(directory) if has_only_pickles(directory) else SafetensorsFiles(directory)


def has_only_pickles(directory: Path) -> bool:
    return not list(directory.glob("*.safetensors*")) and bool(list(directory.glob(PICKLES)))


def _opened(file: Path) -> Any:
    import ml_dtypes  # noqa: F401 - registers bfloat16 with numpy, which safetensors needs
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {file}: {error} — the file is truncated or damaged, download it again") from None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file, or one clear CheckpointError."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing — give a directory with a complete checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error} — download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is not a JSON object — download it again")
    return value
