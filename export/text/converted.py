"""Tokenizers that only transformers can make: from other files than tokenizer.json, and of classes that `classes` lacks."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..checkpoints.lfs import refuse_pointer
from ..errors import CheckpointError

_FILES = ("*.model", "*.tiktoken", "vocab.json", "vocab.txt", "tekken.json")


def converted(
    directory: Path, name: str | None, stored: Mapping[str, Any] | None, warnings: list[str]
) -> tuple[Any, dict[str, str]] | None:
    """The tokenizer and the texts of its special tokens, from transformers. ``name``: the tokenizer's class. Runs no code of a repository.

    None and a warning if that fails and there is a tokenizer.json (``stored``). Raises CheckpointError if it fails and there is none.
    """
    for file in directory.glob("*.model"):
        refuse_pointer(file)
    files = [file for pattern in _FILES for file in directory.glob(pattern)]
    if stored is None and not files:
        raise CheckpointError(f"{directory} has no tokenizer.json — it has no other tokenizer file either, download it again")
    missing = [package for package in _packages(files) if find_spec(package) is None]
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        return tokenizer.backend_tokenizer, dict(tokenizer.special_tokens_map)
    except Exception as error:  # transformers raises many types
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if "trust_remote_code" in str(error):
            reason = "only code of its repository could, which never runs here"
        elif missing:
            reason = f"pip install {' '.join(missing)}"
        if stored is None:
            raise CheckpointError(f"{directory} has no tokenizer.json — {files[0].name} cannot be converted ({reason})") from None
    warnings.append(f"the tokenizer class {name} is not known here, so tokenizer.json is used as it is ({reason})")
    return None


def _packages(files: list[Path]) -> list[str]:
    """The packages that the conversion of these files needs. A *.model file of Llama 3 is tiktoken's, others are SentencePiece's."""
    kinds = set()
    for file in files:
        if file.suffix == ".tiktoken" or (file.suffix == ".model" and file.read_bytes()[:1] != b"\n"):  # text, not a protocol buffer
            kinds.add("tiktoken")
        elif file.suffix == ".model":
            kinds.add("sentencepiece")
    return ["transformers", *sorted(kinds)]
