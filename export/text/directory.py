"""The text side of a Hugging Face directory, as transformers' AutoTokenizer reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.safetensors import optional_json, read_json
from ..errors import CheckpointError
from .classes import CLASSES, build, class_name
from .config_files import NAMED, TextConfig, text_config
from .converted import converted
from .side import TOKENIZER_FILE, TextSide
from .stop_ids import bos_of, stop_ids, unapplied
from .templates import directory_templates, tried


def text_of_directory(directory: Path, chat_template: str | None = None) -> TextSide:
    """Read it. ``chat_template`` is used if the directory has none. Raises CheckpointError if a file is missing, damaged or cannot be
    converted."""
    config = read_json(directory / "config.json")
    warnings: list[str] = []
    stored = _stored(directory)
    texts = text_config(directory, stored or {})
    declared = texts.values.get("tokenizer_class") or config.get("tokenizer_class")
    if not (declared is None or isinstance(declared, str)):
        raise CheckpointError(f"{directory} has {declared!r} for tokenizer_class, which is not a name — download it again")
    name = class_name(str(config.get("model_type")), declared, '"ByteLevel"' in json.dumps(stored))
    if stored is None or (name is not None and name not in CLASSES):
        tokenizer, special = converted(directory, name, stored, warnings) or _as_stored(directory, stored, texts)
    elif name is not None and _is_bpe(stored["model"]):
        tokenizer, special = _of_class(directory, name, stored, texts)
    else:
        tokenizer, special = _as_stored(directory, stored, texts)
    _keep_special(tokenizer)
    warnings += _incomplete(tokenizer) + _moved(tokenizer, texts)
    if texts.values.get("clean_up_tokenization_spaces") and type(tokenizer.model).__name__ != "BPE":
        warnings.append("tokenizer_config.json has clean_up_tokenization_spaces, which is not applied: spaces before punctuation stay")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    templates = directory_templates(directory, texts.template) or ({"default": chat_template} if chat_template else {})
    usable, unusable = tried(templates, special)
    generation = optional_json(directory / "generation_config.json")
    ends = {"the tokenizer": special["eos_token"], **texts.eos} if "eos_token" in special else texts.eos
    stop = stop_ids(directory, config, generation, ends, tokenizer.token_to_id, warnings)
    bos = bos_of(directory, config, special.get("bos_token"), tokenizer.token_to_id, warnings)
    names = {token: tokenizer.id_to_token(token) for token in (*stop, *([] if bos is None else [bos]))}
    return TextSide(
        tokenizer_json=tokenizer.to_str(),
        stop=stop,
        bos=bos,
        special=special,
        templates=usable,
        unusable=unusable,
        split_special=texts.values.get("split_special_tokens") is True,
        names={token: text for token, text in names.items() if text is not None},
        vocab=vocab if type(vocab := config.get("vocab_size")) is int else None,
        warnings=(*warnings, *unapplied(generation)),
    )


def _stored(directory: Path) -> dict[str, Any] | None:
    """The parsed tokenizer.json, or the file that stands for it in newer versions (fast_tokenizer_files); None if there is none."""
    listed = optional_json(directory / "tokenizer_config.json").get("fast_tokenizer_files")
    names = [name for name in listed if isinstance(name, str) and "/" not in name] if isinstance(listed, list) else []
    versioned = sorted(name for name in names if name.startswith("tokenizer.") and name != TOKENIZER_FILE)
    file = next((file for name in reversed(versioned) if (file := directory / name).is_file()), directory / TOKENIZER_FILE)
    if not file.is_file():
        return None
    stored = read_json(file)
    if not isinstance(stored.get("model"), dict) or "vocab" not in stored["model"]:
        raise CheckpointError(f"cannot read {file}: it has no model with a vocabulary — download it again")
    return stored


def _is_bpe(model: Mapping[str, Any]) -> bool:
    return model.get("type") == "BPE" or (model.get("type") is None and "merges" in model)


def _as_stored(directory: Path, stored: Mapping[str, Any] | None, texts: TextConfig) -> tuple[Any, dict[str, str]]:
    """The tokenizer of tokenizer.json, with the tokens that the other files add."""
    from tokenizers import Tokenizer

    whole = stored and {**stored, "model": {**stored["model"], "dropout": None}}  # dropout is for training: it cuts words at random
    try:
        tokenizer = Tokenizer.from_str(json.dumps(whole))
    except Exception as error:  # the tokenizers package raises plain Exception
        raise _unreadable(directory, error) from None
    named = _named({**_padding(stored), **texts.named})
    _add(tokenizer, texts, named)
    return tokenizer, {key: _text(token) for key, token in named.items()}


def _of_class(directory: Path, name: str, stored: Mapping[str, Any], texts: TextConfig) -> tuple[Any, dict[str, str]]:
    """A tokenizer that its class builds anew; only vocabulary, merges and post-processor come from tokenizer.json."""
    from tokenizers import AddedToken, Tokenizer

    rules = CLASSES[name]
    named = _named({**_padding(stored), **rules.defaults, **texts.named})
    try:
        tokenizer = build(name, stored["model"], texts.values, _text(named.get("unk_token", "<unk>")))
        bare = Tokenizer.from_str(json.dumps({**stored, "model": {**stored["model"], "vocab": {}, "merges": []}, "added_tokens": []}))
    except Exception as error:  # the tokenizers package raises plain Exception
        raise _unreadable(directory, error) from None
    if bare.post_processor is not None and not rules.ends_bare:
        tokenizer.post_processor = bare.post_processor
    _add(tokenizer, texts, named)
    special = {key: _text(token) for key, token in named.items()}
    if rules.adds_texts:
        tokenizer.add_tokens([AddedToken(text, special=True) for text in (*special.values(), *map(_text, texts.extra))])
    if rules.adds_tokens:
        again = (AddedToken(each, special=True) if isinstance(each, str) else each for each in (*named.values(), *texts.extra))
        tokenizer.add_special_tokens(list(again))
    if rules.begins:
        _begin_with(tokenizer, special.get("bos_token"))
    return tokenizer, special


def _named(found: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens that are not switched off, in the order in which transformers adds them."""
    return {name: found[name] for name in (*NAMED, *(name for name in found if name not in NAMED)) if found.get(name) is not None}


def _padding(stored: Mapping[str, Any] | None) -> dict[str, Any]:
    """pad_token as tokenizer.json's padding names it; the padding itself is dropped."""
    padding = (stored or {}).get("padding")
    return {"pad_token": padding["pad_token"]} if isinstance(padding, dict) and isinstance(padding.get("pad_token"), str) else {}


def _unreadable(directory: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"cannot read {directory / TOKENIZER_FILE}: {error} — download it again")


def _begin_with(tokenizer: Any, token: str | None) -> None:
    """Let the tokenizer put this token before every text, and nothing else around it."""
    from tokenizers.processors import TemplateProcessing

    front = [] if token is None else [(token, tokenizer.token_to_id(token))]
    tokenizer.post_processor = TemplateProcessing(single=[*(text for text, _ in front), "$A"], special_tokens=front)


def _text(token: Any) -> str:
    return token if isinstance(token, str) else str(token.content)


def _add(tokenizer: Any, texts: TextConfig, named: Mapping[str, Any]) -> None:
    """Add the listed tokens, also those that are there, because a name makes a token special; and special tokens that are not listed."""
    from tokenizers import AddedToken

    new = [token for _, token in sorted(texts.added.items())]
    known = {_text(token) for token in (*tokenizer.get_added_tokens_decoder().values(), *new)}
    for token in (*named.values(), *texts.extra):
        if _text(token) not in known and token not in new:  # a text equals no AddedToken: both are added then, and the last one counts
            new.append(token)
    special = {_text(token) for token in named.values()}
    ready = [AddedToken(token, special=True) if isinstance(token, str) else token for token in new]
    for token in ready:
        token.special = token.special or token.content in special
    tokenizer.add_tokens(ready)


def _keep_special(tokenizer: Any) -> None:
    """A token that was special once is left out of texts even if it was added again as another; tokenizer.json forgets that."""
    changed = []
    for token_id, token in tokenizer.get_added_tokens_decoder().items():
        if not token.special and tokenizer.decode([token_id]) == "" != tokenizer.decode([token_id], skip_special_tokens=False):
            token.special = True
            changed.append(token)
    tokenizer.add_tokens(changed)


def _incomplete(tokenizer: Any) -> list[str]:
    """A warning if the tokenizer does not encode every text: its unknown token may be missing, for example."""
    try:
        tokenizer.encode("A text, 1 \U0001f642\ue000")
    except Exception as error:  # the tokenizers package raises plain Exception
        return [f"the tokenizer does not encode every text ({error}): prompts that it cannot encode are refused"]
    return []


def _moved(tokenizer: Any, texts: TextConfig) -> list[str]:
    """A warning if added tokens have other ids than the files claim: transformers numbers new tokens in its own way."""
    moved = [(token_id, token.content) for token_id, token in texts.added.items() if tokenizer.token_to_id(token.content) != token_id]
    if not moved:
        return []
    claimed, text = moved[0]
    example = f"the first: {text!r} is {tokenizer.token_to_id(text)}, not {claimed}"
    return [f"{len(moved)} added tokens have another id than the files say ({example}), as in transformers"]
