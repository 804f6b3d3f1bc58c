"""A target as a Hugging Face directory: config.json and weight files, quantized or not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, UnsupportedModel
from .arch import Arch, arch_from_config
from .quantized.methods import Reader, reader_of
from .quantized.settings import SETTINGS_FILES, quantization_of
from .quantized.stored import Form, HasIntegers, StoredIntegers
from .safetensors import Files, Weights, read_json
from .target_tensors import EMBEDDING, HEAD, check_names, expected_tensors, harmless
from .weight_files import open_files, refuse_adapter

CONFIG_FILES = ("config.json", "adapter_config.json", *SETTINGS_FILES)
"""What `read_config` reads."""
_ROWS = 4096  # of two matrices that are compared, at a time


@dataclass(frozen=True)
class TargetConfig:
    """``reader``: of quantized weights, None for others."""

    arch: Arch
    reader: Reader | None
    settings: dict[str, Any]


def read_config(directory: Path) -> TargetConfig:
    """What a directory says about its weights. No weights are opened. Raises CheckpointError for unreadable files and UnsupportedModel for
    what we cannot read or express: an adapter, a method of quantization, an architecture."""
    refuse_adapter(directory)
    config = read_json(directory / "config.json")
    quantization = quantization_of(directory, config)
    reader = reader_of(quantization) if quantization else None
    return TargetConfig(arch_from_config(config), reader, config)


class HuggingFaceCheckpoint:
    """Tensors by the names that transformers' model has; the head as transformers finds it, whatever tie_word_embeddings says.

    Raises CheckpointError for missing, damaged or contradictory files, and UnsupportedModel for a tensor that would be left out.
    """

    def __init__(self, directory: Path) -> None:
        config = read_config(directory)
        self.path, files = directory, open_files(directory, config.settings)
        self._files = config.reader(files) if config.reader else files
        self._names = _canonical(self._files, config.arch)
        self.arch, notes = _with_head(config.arch, self._names, self._files)
        notes += _without_zero_biases(self.arch, self._names, self._files)
        check_names(self.arch, self._names, directory)
        self._check_stored()
        left_out = harmless(self._names)
        if left_out:
            notes.append(f"{left_out[0]} ({len(left_out)} tensors) is left out, as transformers does: it is computed")
        self.notes = tuple(notes)

    def _check_stored(self) -> None:
        """Raises CheckpointError for another shape than config.json asks for, or integers in an unquantized checkpoint."""
        for name, shape in expected_tensors(self.arch).items():
            found, kind = self.shape(name), self._files.stored_type(self._names[name])
            if found != shape:
                raise CheckpointError(
                    f"{self.path} has {name} of the shape {list(found)}, config.json asks for {list(shape)} — config and weights differ, "
                    "download the checkpoint again"
                )
            if kind.kind in "iub":
                raise UnsupportedModel(
                    f"{self.path} has integers ({kind}) in {name}, but no quantization_config says what they stand for — "
                    "get the config.json that belongs to them"
                )

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files.shape(self._names.get(name, name))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._files.read(self._names.get(name, name), start, stop)

    def form(self, name: str) -> Form | None:
        """How a tensor is stored; None if it is not quantized."""
        return self._files.form(self._names.get(name, name)) if isinstance(self._files, HasIntegers) else None

    def integers(self, name: str, start: int, stop: int) -> StoredIntegers:
        """Rows [start, stop) of a quantized tensor."""
        assert isinstance(self._files, HasIntegers)
        return self._files.integers(self._names[name], start, stop)

    def fingerprint(self) -> list[list[Any]]:
        return self._files.fingerprint()


def _canonical(files: Files, arch: Arch) -> dict[str, str]:
    """Name in transformers' causal model -> stored name. The base model is stored without the prefix "model."."""
    names: dict[str, str] = {}
    known = expected_tensors(replace(arch, tied_head=False)).keys()
    for name in files.names():
        full = f"model.{name}" if f"model.{name}" in known else name
        if full in names:
            raise CheckpointError(f"{files.path} has both {name} and {names[full]} — download the checkpoint again")
        names[full] = name
    return names


def _with_head(arch: Arch, names: dict[str, str], files: Files) -> tuple[Arch, list[str]]:
    """Whether the output matrix is the embedding, as transformers 5 decides it (PreTrainedModel.tie_weights), and notes about it.

    With tie_word_embeddings a stored head counts if it differs from the embedding, and stands for a missing embedding. ``names`` loses a
    head that is a copy.
    """
    if not arch.tied_head or HEAD not in names:
        return arch, []
    if EMBEDDING not in names:
        names[EMBEDDING] = names.pop(HEAD)
        return arch, [f"{HEAD} is also the embedding: the checkpoint has no other, and tie_word_embeddings is true"]
    if _are_equal(files, names[EMBEDDING], names[HEAD]):
        del names[HEAD]
        return arch, [f"{HEAD} is left out: tie_word_embeddings is true, and it is a copy of the embedding"]
    return replace(arch, tied_head=False), [f"the stored {HEAD} is used, as transformers does: it is not the embedding, though "
                                            "tie_word_embeddings is true"]  # fmt: skip


def _without_zero_biases(arch: Arch, names: dict[str, str], files: Files) -> list[str]:
    """Takes biases of zeros that the architecture does not have out of ``names``, and says so: AutoGPTQ stored one for every matrix."""
    known = expected_tensors(arch)
    unused = [name for name in names if name.endswith("_proj.bias") and name not in known]
    zeros = [name for name in unused if not files.read(names[name]).any()]
    for name in zeros:
        del names[name]
    return [f"{zeros[0]} ({len(zeros)} tensors) is left out: it is zero"] if zeros else []


def _are_equal(weights: Weights, one: str, other: str) -> bool:
    shape = weights.shape(one)
    return shape == weights.shape(other) and all(
        np.array_equal(weights.read(one, start, start + _ROWS), weights.read(other, start, start + _ROWS))
        for start in range(0, shape[0], _ROWS)
    )
