"""The tokenizer of a checkpoint, in the form that the runtime reads: tokenizer.json, chat template and the ids of special tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnsupportedModel
from .gguf import GgufCheckpoint
from .safetensors import read_json

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"

# Regular expressions of llama.cpp's named pre-tokenizers that differ from the byte-level default. They differ in how many digits they join.
_SPLIT_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {"llama-bpe": _SPLIT_PATTERN % "1,3", "qwen2": _SPLIT_PATTERN % "1"}
_CONTROL, _USER_DEFINED = 3, 4  # GGUF's token types


@dataclass(frozen=True)
class TokenizerFiles:
    """Contents of the tokenizer files of an engine directory. ``stop``: ids of the tokens that end an answer."""

    tokenizer_json: str
    chat_template: str | None
    stop: tuple[int, ...]
    bos: int | None


def tokenizer_of_directory(directory: Path, chat_template: str | None) -> TokenizerFiles:
    """The tokenizer of a Hugging Face directory. ``chat_template`` is used if the directory has none.

    Raises CheckpointError if a file is missing, damaged or cannot be converted.
    """
    config = _optional_json(directory / "tokenizer_config.json")
    model, generation = read_json(directory / "config.json"), _optional_json(directory / "generation_config.json")
    stop = _ids(directory, "eos_token_id", generation.get("eos_token_id", model.get("eos_token_id")))
    bos = _ids(directory, "bos_token_id", model.get("bos_token_id"))
    template = _template(directory, config.get("chat_template"))
    return TokenizerFiles(_tokenizer_json(directory), template or chat_template, stop, bos[0] if bos else None)


def _ids(directory: Path, name: str, value: Any) -> tuple[int, ...]:
    """The ids in a config entry, which is one id, a list of ids or None."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise CheckpointError(f"{directory} has {value!r} for {name}, which is not a token id — download its config again")
    return tuple(ids)


def _template(directory: Path, configured: Any) -> str | None:
    """The chat template: from its own file, else from tokenizer_config.json, which has one template or a list of named ones."""
    file = directory / TEMPLATE_FILE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read {file}: {error} — download it again") from None
    if isinstance(configured, list):
        defaults = (entry for entry in configured if isinstance(entry, dict) and entry.get("name") == "default")
        configured = next((entry.get("template") for entry in defaults), None)
    if configured is not None and not isinstance(configured, str):
        raise CheckpointError(f"{directory / 'tokenizer_config.json'} has a chat template that is not text — download it again")
    return configured


def _tokenizer_json(directory: Path) -> str:
    from tokenizers import Tokenizer

    file = directory / TOKENIZER_FILE
    if file.is_file():
        try:
            text = file.read_text(encoding="utf-8")
            Tokenizer.from_str(text)
        except Exception as error:  # the tokenizers package raises plain Exception
            raise CheckpointError(f"cannot read {file}: {error} — download it again") from None
        return text
    try:
        from transformers import AutoTokenizer

        return str(AutoTokenizer.from_pretrained(directory, use_fast=True).backend_tokenizer.to_str())
    except ImportError:
        remedy = "pip install transformers sentencepiece, which converts its tokenizer.model"
    except Exception as error:  # transformers raises many types
        remedy = f"its other tokenizer files cannot be converted ({error})"
    raise CheckpointError(f"{directory} has no {TOKENIZER_FILE} — {remedy}")


def _optional_json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def tokenizer_of_gguf(checkpoint: GgufCheckpoint) -> TokenizerFiles:
    """A tokenizer from the vocabulary and merges in a GGUF header. Only byte-level BPE is supported.

    Raises UnsupportedModel for another kind of tokenizer, CheckpointError for a damaged header.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

    kind, split = checkpoint.field("tokenizer.ggml.model"), checkpoint.field("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or split not in ("smollm", "default", "gpt-2", *_SPLITS):
        raise UnsupportedModel(f"the GGUF's tokenizer {kind}/{split} is not supported — export from the Hugging Face directory instead")
    tokens, merges = (_strings(checkpoint, name) for name in ("tokens", "merges"))
    try:
        pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    except Exception as error:  # the tokenizers package raises plain Exception
        raise CheckpointError(f"cannot read the tokenizer of {checkpoint.path}: {error} — the file is damaged, download it again") from None
    tokenizer.pre_tokenizer = _pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    types = checkpoint.field("tokenizer.ggml.token_type", [])
    added = [(token, kind) for token, kind in zip(tokens, types, strict=False) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, kind in added if kind == _CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in added if kind == _USER_DEFINED])
    bos, *stop_ids = (_special_token(checkpoint, name, len(tokens)) for name in ("bos", "eos", "eot"))
    if bos is not None and checkpoint.field("tokenizer.ggml.add_bos_token", False):
        _prepend(tokenizer, tokens[bos], bos)
    stop = tuple(dict.fromkeys(token_id for token_id in stop_ids if token_id is not None))
    template = checkpoint.field("tokenizer.chat_template")
    return TokenizerFiles(tokenizer.to_str(), template if isinstance(template, str) else None, stop, bos)


def _strings(checkpoint: GgufCheckpoint, name: str) -> list[str]:
    strings = checkpoint.field(f"tokenizer.ggml.{name}")
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise CheckpointError(f"{checkpoint.path} has no strings in tokenizer.ggml.{name} — the file is incomplete, download it again")
    return strings


def _special_token(checkpoint: GgufCheckpoint, name: str, vocab: int) -> int | None:
    """The id of a special token, None if the model has none."""
    token_id = checkpoint.field(f"tokenizer.ggml.{name}_token_id")
    if token_id is not None and not (isinstance(token_id, int) and 0 <= token_id < vocab):
        raise CheckpointError(f"{checkpoint.path} has {token_id!r} for its {name} token — the file is damaged, download it again")
    return token_id


def _pre_tokenizer(name: str) -> Any:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if name == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if name in _SPLITS:
        split = Split(Regex(_SPLITS[name]), behavior="isolated")
        return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    return ByteLevel(add_prefix_space=False)


def _prepend(tokenizer: Any, token: str, token_id: int) -> None:
    """Let the tokenizer put this token before every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=[(token, token_id)])
