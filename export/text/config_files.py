"""The JSON files of a Hugging Face directory that say something about text, merged in transformers' order of precedence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.safetensors import optional_json
from ..errors import CheckpointError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that every tokenizer of transformers may have."""

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_EXTRA, _OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"


@dataclass(frozen=True)
class TextConfig:
    """What the files beside tokenizer.json say. ``values``: tokenizer_config.json, with special_tokens_map.json over it where transformers
    reads that. ``added``: tokens to add, by the id that the files claim. ``named``: special tokens with a name, None for one that is
    switched off; ``extra``: without a name. ``eos``: every text that a file
    gives for eos_token, by the file's name. Tokens are `tokenizers.AddedToken`, or str where the files give only the text."""

    values: Mapping[str, Any]
    added: Mapping[int, Any]
    named: Mapping[str, Any]
    extra: tuple[Any, ...]
    eos: Mapping[str, str]

    @property
    def template(self) -> Any:
        """The chat template or templates in tokenizer_config.json."""
        return self.values.get("chat_template")


def text_config(directory: Path, tokenizer_json: Mapping[str, Any]) -> TextConfig:
    """Read them, as transformers' from_pretrained does. ``tokenizer_json``: the parsed tokenizer.json. Raises CheckpointError."""
    file = directory / "tokenizer_config.json"
    values = optional_json(file)
    if not values.get(_EXTRA) and _OLD_EXTRA in values:
        values[_EXTRA] = values.pop(_OLD_EXTRA)
    mapped, added = _special_tokens_map(directory, "added_tokens_decoder" in values), dict[int, Any]()
    eos = {name: content.get("eos_token") for name, content in ((file.name, values), ("special_tokens_map.json", mapped))}
    try:
        if "added_tokens_decoder" in values:  # a newer file, which stands for those below
            added = {int(token_id): _entry(token) for token_id, token in (values["added_tokens_decoder"] or {}).items()}
        else:
            file = directory / "special_tokens_map.json"
            values |= _merged(values, mapped)
            file = directory / "added_tokens.json"
            added = _numbered(listed, values) if (listed := optional_json(file)) else {}
            file = directory / "tokenizer.json"
            added |= {token["id"]: _entry(token) for token in tokenizer_json.get("added_tokens", ())}
        file = directory / "tokenizer_config.json"
        named, extra = _special(values, {_text(token): token for token in added.values()})
        texts = {name: _text(token) for name, token in ((name, _token(stored)) for name, stored in eos.items()) if token is not None}
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"cannot read the tokens in {file}: {error} — download it again") from None
    return TextConfig(values, added, named, extra, texts)


def _special_tokens_map(directory: Path, beside: bool) -> dict[str, Any]:
    """special_tokens_map.json. ``beside``: there is an added_tokens_decoder, so that transformers does not read the file: only its
    eos_token counts then, if it has one."""
    file = directory / "special_tokens_map.json"
    if not beside:
        return optional_json(file)
    try:
        mapped = optional_json(file)
        _token(mapped.get("eos_token"))
    except (CheckpointError, TypeError, ValueError, KeyError):
        return {}
    return mapped


def _entry(stored: Any) -> Any:
    """An entry of a list of added tokens, as AddedToken. Raises TypeError, ValueError and KeyError."""
    if not isinstance(stored, dict):
        raise TypeError(f"{stored!r} is not a token")
    return _token(stored)


def _token(stored: Any) -> Any:
    """A stored token as AddedToken, or as it is if it is only text. Raises TypeError, ValueError and KeyError."""
    from tokenizers import AddedToken

    if isinstance(stored, str):
        stored.encode()
    if isinstance(stored, dict):
        return AddedToken(stored["content"], **{key: bool(stored[key]) for key in _FLAGS if key in stored})
    if stored is None or isinstance(stored, str):
        return stored
    raise TypeError(f"{stored!r} is not a token")


def _text(token: Any) -> str:
    return token if isinstance(token, str) else str(token.content)


def _merged(values: Mapping[str, Any], mapped: Mapping[str, Any]) -> dict[str, Any]:
    """special_tokens_map.json, whose tokens all are special."""
    found: dict[str, Any] = {}
    for key, value in mapped.items():
        if isinstance(value, dict) and key != _EXTRA:
            value = {**value, "special": True}
        elif isinstance(value, list):
            value = [{**token, "special": True} if isinstance(token, dict) else token for token in value]
            if key == _EXTRA:
                known = list(values.get(_EXTRA) or [])
                value = [*known, *(token for token in value if token not in known)]
        found[key] = value
    if _OLD_EXTRA in found and _EXTRA not in values and _EXTRA not in found:
        found[_EXTRA] = found.pop(_OLD_EXTRA)
    return found


def _numbered(listed: Mapping[str, Any], values: Mapping[str, Any]) -> dict[int, Any]:
    """added_tokens.json, text -> id."""
    from tokenizers import AddedToken

    extra = values.get(_EXTRA) or []
    stored = [*(values.get(name) for name in NAMED), *(extra if isinstance(extra, list) else ())]
    special = {_text(_token(token)) for token in stored if token and not (isinstance(token, dict) and "__type" in token)}  # as transformers
    return {
        int(token_id): AddedToken(text, lstrip=False, rstrip=False, normalized=text not in special, special=text in special)
        for text, token_id in listed.items()
    }


def _special(values: Mapping[str, Any], added: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Special tokens with and without a name, with the flags that the added tokens give them."""
    named = {name: _token(values[name]) for name in NAMED if name in values}
    named = {name: token if token is None else added.get(_text(token), token) for name, token in named.items()}
    own = [name for name, value in values.items() if name.endswith("_token") and name not in NAMED and isinstance(value, (str, dict))]
    named |= {name: _token(values[name]) for name in sorted(own, key=lambda name: isinstance(values[name], str))}
    extra = values.get(_EXTRA) or []
    if isinstance(extra, dict):
        named |= {name: _token(token) for name, token in extra.items()}
        extra = values.get(_OLD_EXTRA) or []
    return named, tuple(_token(token) for token in extra)
