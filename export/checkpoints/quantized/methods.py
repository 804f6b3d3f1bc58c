"""The methods of quantization that can be read, and the refusal of all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ...errors import UnsupportedModel
from ..safetensors import Files
from . import awq, compressed_tensors, fp8, gptq
from .files import QuantizedFiles
from .settings import Quantization, expect_types
from .stored import QuantizedMatrix, Tensors

Reader = Callable[[Files], Files]
"""Stored tensors -> the float weights that they stand for, under the names of an unquantized checkpoint. Tensors that the method does not
know keep their names, so that the check of the target names them."""


class Method(Protocol):
    """A module of this folder."""

    def check(self, config: Mapping[str, Any], source: str) -> None:
        """Raises UnsupportedModel for settings that cannot be read exactly. ``source``: where they stand, for messages."""

    def find(self, files: Tensors, config: Mapping[str, Any]) -> Mapping[str, QuantizedMatrix]:
        """The quantized matrices by their usual names. Raises CheckpointError for tensors that contradict each other."""


METHODS: Mapping[str, Method] = {
    "awq": awq,
    "compressed-tensors": compressed_tensors,
    "fbgemm_fp8": fp8,
    "fp8": fp8,
    "gptq": gptq,
    "modelopt": fp8,
}


def reader_of(quantization: Quantization) -> Reader:
    """The reader of a quantized checkpoint, chosen from its settings alone. Raises UnsupportedModel if we have none, and
    CheckpointError for settings of wrong types."""
    method, settings = METHODS.get(quantization.method), quantization.settings
    if method is None:
        raise UnsupportedModel(
            f"{quantization.source} says that the weights are quantized with {quantization.method!r}, which cannot be read — "
            f"readable: {', '.join(METHODS)}; else export from the unquantized checkpoint (--precision quantizes it)"
        )
    expect_types(quantization)
    method.check(settings, quantization.source)
    return lambda files: QuantizedFiles(files, method.find(files, settings))
