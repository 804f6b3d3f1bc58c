"""tokenizer.json, chat template and special ids of a checkpoint, in the one form the runtime reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnsupportedModel
from .gguf import GgufCheckpoint
from .safetensors import read_json

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"

# How llama.cpp's names of pre-tokenizers split text, where that is more than the byte-level default.
_DIGITS_THREE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {"llama-bpe": _DIGITS_THREE % "1,3", "qwen2": _DIGITS_THREE % "1"}
_CONTROL, _USER_DEFINED = 3, 4


@dataclass(frozen=True)
class TokenizerFiles:
    """What to write beside the graphs. ``stop``: ids that end an answer."""

    tokenizer_json: str
    chat_template: str | None
    stop: tuple[int, ...]
    bos: int | None


def tokenizer_of_directory(directory: Path, chat_template: str | None) -> TokenizerFiles:
    """From an HF directory. ``chat_template`` stands in where the repository has none."""
    config = _optional_json(directory / "tokenizer_config.json")
    model, generation = read_json(directory / "config.json"), _optional_json(directory / "generation_config.json")
    stop = _ids(directory, "eos_token_id", generation.get("eos_token_id", model.get("eos_token_id")))
    bos = _ids(directory, "bos_token_id", model.get("bos_token_id"))
    template = _template(directory, config.get("chat_template"))
    return TokenizerFiles(_tokenizer_json(directory), template or chat_template, stop, bos[0] if bos else None)


def _ids(directory: Path, name: str, value: Any) -> tuple[int, ...]:
    """One token id or several; none where there is no value."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(each) is int and each >= 0 for each in ids):
        raise CheckpointError(f"{directory} has {value!r} for {name}, which is no token id — download its config again")
    return tuple(ids)


def _template(directory: Path, configured: Any) -> str | None:
    """Of a file of its own, else what tokenizer_config.json says: a template, or several with names."""
    file = directory / TEMPLATE_FILE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read {file}: {error} — download it again") from None
    if isinstance(configured, list):
        named = (each for each in configured if isinstance(each, dict) and each.get("name") == "default")
        configured = next((each.get("template") for each in named), None)
    if configured is not None and not isinstance(configured, str):
        raise CheckpointError(f"{directory / 'tokenizer_config.json'} has a chat template that is no text — download it again")
    return configured


def _tokenizer_json(directory: Path) -> str:
    from tokenizers import Tokenizer

    file = directory / TOKENIZER_FILE
    if file.is_file():
        try:
            text = file.read_text(encoding="utf-8")
            Tokenizer.from_str(text)
        except Exception as error:  # the Rust side raises plain Exception
            raise CheckpointError(f"cannot read {file}: {error} — download it again") from None
        return text
    try:
        from transformers import AutoTokenizer

        return str(AutoTokenizer.from_pretrained(directory, use_fast=True).backend_tokenizer.to_str())
    except ImportError:
        remedy = "pip install transformers sentencepiece, which converts its tokenizer.model"
    except Exception as error:  # transformers raises many kinds
        remedy = f"its other tokenizer files cannot be converted ({error})"
    raise CheckpointError(f"{directory} has no {TOKENIZER_FILE} — {remedy}")


def _optional_json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def tokenizer_of_gguf(checkpoint: GgufCheckpoint) -> TokenizerFiles:
    """From the vocabulary and merges in a GGUF header (byte-level BPE only). Raises UnsupportedModel and CheckpointError."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    kind, split = checkpoint.field("tokenizer.ggml.model"), checkpoint.field("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or split not in ("smollm", "default", "gpt-2", *_SPLITS):
        raise UnsupportedModel(f"the GGUF's tokenizer {kind}/{split} is not supported — export from the HF directory instead")
    tokens, merges = (_words(checkpoint, name) for name in ("tokens", "merges"))
    try:
        pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    except Exception as error:  # the Rust side raises plain Exception
        raise CheckpointError(f"cannot read the tokenizer of {checkpoint.path}: {error} — the file is damaged, download it again") from None
    tokenizer.pre_tokenizer = _pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = checkpoint.field("tokenizer.ggml.token_type", [])
    added = [(token, each) for token, each in zip(tokens, kinds, strict=False) if each in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, each in added if each == _CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, each in added if each == _USER_DEFINED])
    bos, *ends = (_token(checkpoint, name, len(tokens)) for name in ("bos", "eos", "eot"))
    if bos is not None and checkpoint.field("tokenizer.ggml.add_bos_token", False):
        _prepend(tokenizer, tokens[bos], bos)
    stop = tuple(dict.fromkeys(end for end in ends if end is not None))
    template = checkpoint.field("tokenizer.chat_template")
    return TokenizerFiles(tokenizer.to_str(), template if isinstance(template, str) else None, stop, bos)


def _words(checkpoint: GgufCheckpoint, name: str) -> list[str]:
    found = checkpoint.field(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise CheckpointError(f"{checkpoint.path} has no texts in tokenizer.ggml.{name} — the file is incomplete, download it again")
    return found


def _token(checkpoint: GgufCheckpoint, name: str, count: int) -> int | None:
    """A special token's id, if there is one."""
    found = checkpoint.field(f"tokenizer.ggml.{name}_token_id")
    if found is not None and not (isinstance(found, int) and 0 <= found < count):
        raise CheckpointError(f"{checkpoint.path} has {found!r} for its {name} token — the file is damaged, download it again")
    return found


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
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=[(token, token_id)])
