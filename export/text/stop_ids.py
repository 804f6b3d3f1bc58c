"""The tokens that end an answer, and the one that begins a text, in a Hugging Face directory: what one file omits does not hide another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

_DEFAULT_EOS = {"llama": 2, "mistral": 2}  # of transformers' configs that do not mention eos_token_id

Lookup = Callable[[str], int | None]


def stop_ids(
    directory: Path, config: Mapping[str, Any], generation: Mapping[str, Any], texts: Mapping[str, str], lookup: Lookup
) -> dict[int, tuple[str, ...]]:
    """Ids that end an answer, each with the places that name it: the union of generation_config.json, config.json and ``texts``, the
    eos_token of other places by their names. Raises CheckpointError for what is not a token id."""
    found: dict[int, tuple[str, ...]] = {}
    default = None if generation else _DEFAULT_EOS.get(str(config.get("model_type")))
    sources = {"generation_config.json": generation.get("eos_token_id"), "config.json": config.get("eos_token_id", default)}
    for place, value in sources.items():
        for token in _ids(directory, place, "eos_token_id", value):
            found[token] = (*found.get(token, ()), place)
    for place, text in texts.items():
        if (end := lookup(text)) is not None:
            found[end] = (*found.get(end, ()), place)
    return found


def bos_of(directory: Path, config: Mapping[str, Any], bos: str | None, lookup: Lookup) -> int | None:
    """The id of the token that begins a text: the tokenizer's, else of config.json. Raises CheckpointError for what is not a token id."""
    token = lookup(bos) if bos is not None else None
    ids = _ids(directory, "config.json", "bos_token_id", config.get("bos_token_id"))
    return token if token is not None else next(iter(ids), None)


def _ids(directory: Path, place: str, name: str, value: Any) -> tuple[int, ...]:
    """The ids in a config entry, which is one id, a list of ids or None."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise CheckpointError(f"{directory / place} has {value!r} for {name}, which is not a token id — download it again")
    return tuple(ids)
