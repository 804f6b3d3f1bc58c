"""Tokenizer classes: transformers builds some of them anew from vocabulary and merges, with a normalizer and a pre-tokenizer of their own.

Such a class overrides what tokenizer.json says about both, so its rules are repeated here (transformers 5.24, models/*/tokenization_*.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PLAIN = ("", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")  # these leave tokenizer.json as it is
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_END = "<|endoftext|>"
_GPT2 = {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": None}
_LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_FILL = {"prefix_token": "▁<PRE>", "middle_token": "▁<MID>", "suffix_token": "▁<SUF>", "eot_token": "▁<EOT>", "fill_token": "<FILL_ME>"}
_COHERE = {
    "unk_token": "<UNK>",
    "bos_token": "<BOS_TOKEN>",
    "eos_token": "<|END_OF_TURN_TOKEN|>",
    "pad_token": "<PAD>",
    "cls_token": "<CLS>",
    "sep_token": "<SEP>",
    "mask_token": "<MASK_TOKEN>",
}


@dataclass(frozen=True)
class TokenizerClass:
    """``defaults``: special tokens of a directory that names none. ``begins``: whether a text begins with bos_token, whatever the
    post-processor of tokenizer.json says. ``ends_bare``: whether texts get no special tokens, whatever that post-processor says.
    ``adds_all``: whether its special tokens are added once more at the end, as special ones."""

    defaults: Mapping[str, str | None]
    begins: bool = False
    ends_bare: bool = False
    adds_all: bool = False


CLASSES = {
    "LlamaTokenizer": TokenizerClass(_LLAMA),
    "CodeLlamaTokenizer": TokenizerClass(_LLAMA | _FILL, begins=True),
    "GPT2Tokenizer": TokenizerClass(_GPT2),
    "CodeGenTokenizer": TokenizerClass(_GPT2),
    "GPTNeoXTokenizer": TokenizerClass(
        {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": "<|padding|>"}, ends_bare=True
    ),
    "Qwen2Tokenizer": TokenizerClass({"unk_token": _END, "eos_token": _END, "pad_token": _END}, adds_all=True),
    "GemmaTokenizer": TokenizerClass(
        {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "mask_token": "<mask>"}
    ),
    "CohereTokenizer": TokenizerClass(_COHERE, adds_all=True),
}


def class_name(model_type: str, declared: str | None, byte_level: bool) -> str | None:
    """The class that AutoTokenizer takes; None if it reads tokenizer.json as it is. ``declared``: tokenizer_class of tokenizer_config.json,
    else of config.json. ``byte_level``: whether tokenizer.json is byte-level."""
    name = (declared or "").removesuffix("Fast")
    if model_type == "qwen2":
        return "Qwen2Tokenizer"
    if model_type == "mistral" or (name == "LlamaTokenizer" and byte_level):
        return None
    if not name and model_type == "qwen3":
        return "Qwen2Tokenizer"
    return None if name in _PLAIN else name


def build(name: str, model: Mapping[str, Any], values: Mapping[str, Any], unknown: str) -> Any:
    """A `tokenizers.Tokenizer` of class ``name`` (one of CLASSES). ``model``: vocabulary and merges of tokenizer.json. ``values``: of
    tokenizer_config.json. ``unknown``: the text of unk_token. Raises what the tokenizers package raises."""
    from tokenizers import Tokenizer, models

    merges: Any = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model.get("merges", ())]
    vocab, space = model["vocab"], values.get("add_prefix_space")
    if name in ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"):
        unk = {} if name == "LlamaTokenizer" else {"unk_token": unknown}
        tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=True, byte_fallback=True, **unk))
        _sentencepiece(tokenizer, name, space is None or bool(space), values)
    else:
        tokenizer = Tokenizer(models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False))
        _byte_level(tokenizer, name, bool(space))
    return tokenizer


def _sentencepiece(tokenizer: Any, name: str, space: bool, values: Mapping[str, Any]) -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if name == "GemmaTokenizer":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        legacy = name == "LlamaTokenizer" and bool(values.get("legacy", False))
        scheme = ("always" if legacy else "first") if space else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
        if space or name == "CodeLlamaTokenizer":
            steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)


def _byte_level(tokenizer: Any, name: str, space: bool) -> None:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=name != "Qwen2Tokenizer")
    steps: list[Any] = [byte_level]
    if name == "Qwen2Tokenizer":
        steps.insert(0, pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated"))
    elif name == "CohereTokenizer":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if name in ("Qwen2Tokenizer", "CohereTokenizer", "GPTNeoXTokenizer"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
