"""The tokens that end an answer, and the one that begins a text, in a Hugging Face directory: what one file omits does not hide another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

_DEFAULT_EOS = {"llama": 2, "mistral": 2}  # of transformers' configs that do not mention eos_token_id

_UNAPPLIED = ("forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")

Lookup = Callable[[str], int | None]


def stop_ids(
    directory: Path,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    texts: Mapping[str, str],
    lookup: Lookup,
    warnings: list[str],
) -> dict[int, tuple[str, ...]]:
    """Ids that end an answer, each with the places that name it: the union of generation_config.json, config.json and ``texts``, the
    eos_token of other places by their names. Raises CheckpointError for what is not a token id."""
    found: dict[int, tuple[str, ...]] = {}
    default = None if generation else _DEFAULT_EOS.get(str(config.get("model_type")))
    sources = {"generation_config.json": generation.get("eos_token_id"), "config.json": config.get("eos_token_id", default)}
    for place, value in sources.items():
        for token in _ids(directory, place, "eos_token_id", value, warnings):
            found[token] = (*found.get(token, ()), place)
    for place, text in texts.items():
        if (end := lookup(text)) is not None:
            found[end] = (*found.get(end, ()), place)
    return found


def bos_of(directory: Path, config: Mapping[str, Any], bos: str | None, lookup: Lookup, warnings: list[str]) -> int | None:
    """The id of the token that begins a text: the tokenizer's, else of config.json. Raises CheckpointError for what is not a token id."""
    token = lookup(bos) if bos is not None else None
    ids = _ids(directory, "config.json", "bos_token_id", config.get("bos_token_id"), warnings)
    return token if token is not None else next(iter(ids), None)


def unapplied(generation: Mapping[str, Any]) -> list[str]:
    """A warning for each setting of generation_config.json that would change answers and is not applied."""
    named = [name for name in _UNAPPLIED if generation.get(name) not in (None, [], {})]
    found = [f"generation_config.json has {name}, which is not applied" for name in named]
    if (stops := generation.get("stop_strings")) not in (None, [], ""):
        found.append(f"generation_config.json has stop_strings {stops!r}, which are not applied: pass them as SamplingParams.stop")
    return found


def _ids(directory: Path, place: str, name: str, value: Any, warnings: list[str]) -> tuple[int, ...]:
    """The ids in a config entry, which is one id, a list of ids or None. A negative id is ignored, with a warning."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int for token_id in ids):
        raise CheckpointError(f"{directory / place} has {value!r} for {name}, which is not a token id — download it again")
    if negative := [token_id for token_id in ids if token_id < 0]:
        warnings.append(f"{place} has {negative[0]} for {name}, which is ignored")
    return tuple(token_id for token_id in ids if token_id >= 0)
