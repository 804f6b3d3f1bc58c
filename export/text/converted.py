"""Tokenizers that only transformers can make: from other files than tokenizer.json, and of classes that `classes` lacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.lfs import refuse_pointer
from ..errors import CheckpointError


def converted(
    directory: Path, name: str | None, stored: Mapping[str, Any] | None, warnings: list[str]
) -> tuple[Any, dict[str, str]] | None:
    """The tokenizer and the texts of its special tokens, from transformers. ``name``: the tokenizer's class.

    Without transformers, None and a warning if there is a tokenizer.json (``stored``). Raises CheckpointError if there is none.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        if stored is None:
            remedy = "pip install transformers sentencepiece, which converts its tokenizer.model"
            raise CheckpointError(f"{directory} has no tokenizer.json — {remedy}") from None
        warnings.append(
            f"the tokenizer class {name} is not known: tokenizer.json is used as it is; pip install transformers to build the class"
        )
        return None
    for file in directory.glob("*.model"):
        refuse_pointer(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        return tokenizer.backend_tokenizer, dict(tokenizer.special_tokens_map)
    except Exception as error:  # transformers raises many types
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if stored is None:
            raise CheckpointError(f"{directory} has no tokenizer.json — its other tokenizer files cannot be converted ({reason})") from None
        raise CheckpointError(f"{directory} has a {name} that cannot be built ({reason}) — save its tokenizer with transformers") from None
