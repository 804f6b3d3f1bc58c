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
    """The tokenizer and the texts of its special tokens, from transformers. ``name``: the tokenizer's class. Runs no code of a repository.

    None and a warning if that fails and there is a tokenizer.json (``stored``). Raises CheckpointError if it fails and there is none.
    """
    for file in directory.glob("*.model"):
        refuse_pointer(file)
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        return tokenizer.backend_tokenizer, dict(tokenizer.special_tokens_map)
    except ImportError:
        if stored is None:
            remedy = "pip install transformers sentencepiece, which converts its tokenizer.model"
            raise CheckpointError(f"{directory} has no tokenizer.json — {remedy}") from None
        reason = "pip install transformers to build it"
    except Exception as error:  # transformers raises many types
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if "trust_remote_code" in str(error):
            reason = "only code of its repository could, which never runs here"
        if stored is None:
            raise CheckpointError(f"{directory} has no tokenizer.json — its other tokenizer files cannot be converted ({reason})") from None
    warnings.append(f"the tokenizer class {name} is not known here, so tokenizer.json is used as it is ({reason})")
    return None
