"""Finds how a Hugging Face directory is quantized: each tool writes its settings to another file or key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..safetensors import optional_json

_CONFIG_KEYS = ("quantization_config", "compression_config")  # the latter in old files of compressed-tensors
SETTINGS_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Of AutoGPTQ, AutoAWQ and NVIDIA ModelOpt."""
_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "a whole number": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "true or false": lambda value: isinstance(value, bool),
    "text": lambda value: isinstance(value, str),
    "an object": lambda value: isinstance(value, Mapping),
    "two whole numbers above zero": lambda value: _is_block(value),
    "text, true or false": lambda value: isinstance(value, (str, bool)),
}
_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("bits", "w_bit", "group_size", "q_group_size"), "a whole number"),
    **dict.fromkeys(("desc_act", "zero_point", "is_marlin_format"), "true or false"),
    **dict.fromkeys(("version", "format", "checkpoint_format", "quant_algo", "fmt", "expert_dtype"), "text"),
    **dict.fromkeys(("config_groups", "sparsity_config", "transform_config"), "an object"),
    "weight_block_size": "two whole numbers above zero",
}
_SCHEME_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("num_bits", "group_size"), "a whole number"),
    "symmetric": "true or false",
    "type": "text",
    "block_structure": "two whole numbers above zero",
    "actorder": "text, true or false",
}


@dataclass(frozen=True)
class Quantization:
    """``method``: quant_method as the tools spell it, in lower case. ``source``: file and key of the settings, for messages."""

    method: str
    settings: Mapping[str, Any]
    source: str


def quantization_of(directory: Path, config: Mapping[str, Any]) -> Quantization | None:
    """How the checkpoint in ``directory`` with this config.json is quantized; None if nothing says that it is.

    config.json comes first, as in transformers; a method's own file is for checkpoints whose config.json is silent. Raises CheckpointError
    for settings that are no JSON object or name no method.
    """
    for source, settings in _found(directory, config):
        if not isinstance(settings, Mapping):
            raise CheckpointError(f"{source} is {settings!r}, not an object with quant_method — download it again")
        if settings.get("quant_algo", "") is not None or settings.get("quant_method"):  # ModelOpt writes null for what it did not quantize
            return Quantization(_method(source, settings), settings, source)
    return None


def expect_types(quantization: Quantization) -> None:
    """Raises CheckpointError with key and value for a setting of another type than its tool writes. Null stands for a missing key."""
    settings, source = quantization.settings, quantization.source
    _expect(settings, _TYPES, source, "")
    for name, group in (settings.get("config_groups") or {}).items():
        prefix = f"config_groups.{name}"
        _expect({prefix: group}, {prefix: "an object"}, source, "")
        _expect(group or {}, {"format": "text", "weights": "an object"}, source, f"{prefix}.")
        _expect((group or {}).get("weights") or {}, _SCHEME_TYPES, source, f"{prefix}.weights.")


def _expect(settings: Mapping[str, Any], types: Mapping[str, str], source: str, prefix: str) -> None:
    for key, kind in types.items():
        value = settings.get(key)
        if value is not None and not _KINDS[kind](value):
            raise CheckpointError(f"{source} has {prefix}{key} = {value!r}, not {kind} — download it again")


def _is_block(value: Any) -> bool:
    """Whether it is [128, 128], or "128x128" as in old files of compressed-tensors."""
    if isinstance(value, str):
        return all(size.isdecimal() and int(size) for size in value.split("x")) and value.count("x") == 1
    return isinstance(value, list) and len(value) == 2 and all(type(size) is int and size > 0 for size in value)


def _found(directory: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Source and settings, in order of precedence."""
    file = directory / "config.json"
    nested = [(f"{name}.", value) for name, value in config.items() if isinstance(value, Mapping) and name not in _CONFIG_KEYS]
    for prefix, part in [("", config), *nested]:
        for key in _CONFIG_KEYS:
            if part.get(key) is not None:
                yield f"{prefix}{key} in {file}", part[key]
    for name in SETTINGS_FILES:
        if settings := optional_json(directory / name):
            yield str(directory / name), settings.get("quantization", settings)  # ModelOpt nests its own


def _method(source: str, settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_8bit") or settings.get("load_in_4bit")):
        method = "bitsandbytes"
    if method is None and "quant_algo" in settings:
        method = "modelopt"
    if method is None and "version" in settings and "w_bit" in settings:
        method = "awq"
    if method is None and "bits" in settings and "group_size" in settings:
        method = "gptq"
    if not isinstance(method, str):
        raise CheckpointError(f"{source} does not say quant_method — download it again, or export from the unquantized checkpoint")
    return method.lower()
