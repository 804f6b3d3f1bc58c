"""Chooses the files of a Hugging Face directory that hold its weights, as transformers does, and opens them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnsupportedModel
from .pickles import TorchFiles
from .safetensors import Files, SafetensorsFiles, read_json

_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""In transformers' order."""
_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
PICKLES = _PATTERNS[1]
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
OTHER_FORMATS = ("consolidated*.safetensors", "adapter_model*.safetensors")
"""Files with other tensor names that may lie beside the weights: Mistral's own format, and adapters."""


def open_files(directory: Path, config: Mapping[str, Any] | None = None) -> Files:
    """The weight files of a Hugging Face directory. ``config``: its config.json, which may name the file.

    Raises CheckpointError if a file is missing, damaged or a Git LFS pointer, or if two files hold the same tensor.
    """
    files, listed = weight_files(directory, config or {})
    opened: Files = TorchFiles(directory, files) if files[0].suffix == ".bin" else SafetensorsFiles(directory, files)
    lost = sorted(listed.keys() - set(opened.names()))
    if lost:
        raise CheckpointError(f"{directory / listed[lost[0]]} lacks {lost[0]}, which its index lists there — download the checkpoint again")
    return opened


def weight_files(directory: Path, config: Mapping[str, Any]) -> tuple[list[Path], dict[str, str]]:
    """The files with weights, sorted by name, and the file name of each tensor if there is an index.

    Without a file of transformers' names, all safetensors of the directory are the weights, if no tensor is in two of them.
    """
    for name in (config.get("transformers_weights"), *_NAMES):
        if isinstance(name, str) and (directory / name).is_file():
            return _listed(directory, directory / name) if name.endswith(".index.json") else ([directory / name], {})
    for pattern in _PATTERNS:
        others = {file for other in OTHER_FORMATS for file in directory.glob(other)}
        files = sorted(set(directory.glob(pattern)) - others)
        if files:
            return files, {}
    raise _no_weights(directory)


def _no_weights(directory: Path) -> CheckpointError:
    if list(directory.glob("consolidated*")):
        return CheckpointError(
            f"{directory} has only Mistral's own consolidated weights — get the model*.safetensors of the same repository"
        )
    if found := sorted(directory.glob("*.gguf")):
        return CheckpointError(f"{directory} holds no weights ({', '.join(_PATTERNS)}) — for the GGUF give --weights {found[0]}")
    return CheckpointError(
        f"{directory} holds no weights ({', '.join(_PATTERNS)}) — give a Hugging Face directory, a .gguf file or a hub id"
    )


def _listed(directory: Path, index: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that an index names. Raises CheckpointError if one is missing or outside of the directory, or the index is damaged."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) and name for name in weight_map.values()):
        raise CheckpointError(f"{index} does not say which file holds which tensor — download it again")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise CheckpointError(f"{index} names {outside[0]}, which is outside of its directory — do not use it; download it again")
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} lacks {', '.join(missing[:3])} ({len(missing)} of {len(names)} weight files) — download the checkpoint again"
        )
    return [directory / name for name in names], weight_map


def refuse_adapter(directory: Path) -> None:
    """Raises UnsupportedModel for a directory that holds an adapter (LoRA), alone or beside the weights that it changes."""
    for name in _ADAPTERS:
        if (directory / name).exists():
            raise UnsupportedModel(
                f"{directory} has an adapter ({name}), which would be left out — merge it into the weights (peft's merge_and_unload), "
                "or move it away to export the base model"
            )
