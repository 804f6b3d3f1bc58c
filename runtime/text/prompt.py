"""The forms of a prompt, and its conversion into checked token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np

from ..errors import PromptError
from .tokenizer import Message, Tokenizer

Prompt = str | Sequence[int] | Sequence[Message]
"""Plain text, token ids, or chat messages."""


def encode(prompt: Prompt, tokenizer: Tokenizer, vocab: int, context: int) -> list[int]:
    """The token ids of a prompt in any form. Raises PromptError for ids outside ``vocab``, whoever named them, and for prompts too long for
    ``context``."""
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
    else:
        items = list(prompt)
        if items and isinstance(items[0], Mapping):
            ids = tokenizer.encode(cast(Sequence[Message], items))
        else:
            return _fitting(_checked_ids(cast(Iterable[int], items), vocab), context)
    if unknown := next((token for token in ids if token >= vocab), None):  # a tokenizer may have more tokens than the model
        raise PromptError(
            f"the prompt contains {tokenizer.piece(unknown)!r}, token {unknown} of the tokenizer, but the model knows {vocab} tokens — "
            "leave it out",
            "token_ids",
        )
    return _fitting(ids, context)


def _fitting(ids: list[int], context: int) -> list[int]:
    if not ids:
        raise PromptError("the prompt is empty — give at least one token", "empty")
    if len(ids) >= context:
        raise PromptError(
            f"the prompt has {len(ids)} tokens, the context holds {context} — shorten it, or export with a larger --max-context",
            "too_long",
        )
    return ids


def _checked_ids(items: Iterable[int], vocab: int) -> list[int]:
    ids = []
    for item in items:
        if isinstance(item, bool) or not isinstance(item, (int, np.integer)) or not 0 <= item < vocab:
            raise PromptError(f"{item!r} is not a token id — ids are whole numbers from 0 to {vocab - 1}", "token_ids")
        ids.append(int(item))
    return ids
