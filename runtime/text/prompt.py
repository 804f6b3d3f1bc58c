"""The forms of a prompt, and its conversion into checked token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np

from ..errors import PromptError
from .tokenizer import Chat, Message, Tokenizer

Prompt = str | Sequence[int] | Sequence[Message] | Chat
"""Plain text, token ids, or chat messages, alone or with tools."""


def encode(prompt: Prompt, tokenizer: Tokenizer, vocab: int, context: int, may_grow: bool = True) -> list[int]:
    """The token ids of a prompt in any form. Raises PromptError for ids outside ``vocab``, whoever named them, and for prompts too long for
    ``context``. ``may_grow``: whether another export can have a longer context."""
    if isinstance(prompt, str | Chat):
        ids = tokenizer.encode(prompt)
    else:
        items = list(prompt)
        if items and isinstance(items[0], Mapping):
            ids = tokenizer.encode(cast(Sequence[Message], items))
        else:
            return _fitting(_checked_ids(cast(Iterable[int], items), vocab), context, may_grow)
    if unknown := next((token for token in ids if token >= vocab), None):  # a tokenizer may have more tokens than the model
        raise PromptError(
            f"the prompt contains {tokenizer.piece(unknown)!r}, token {unknown} of the tokenizer, but the model knows {vocab} tokens — "
            "leave it out",
            "token_ids",
        )
    return _fitting(ids, context, may_grow)


def _fitting(ids: list[int], context: int, may_grow: bool) -> list[int]:
    if not ids:
        raise PromptError("the prompt is empty — give at least one token", "empty")
    if len(ids) >= context:
        raise PromptError(
            f"the prompt has {len(ids)} tokens, the context holds {context} — shorten it"
            + (", or export with a larger --max-context" if may_grow else "; this model has no longer context"),
            "too_long",
        )
    return ids


def expect_form(prompt: object) -> None:
    """Raises PromptError for what looks like a prompt and is none: bytes, which would be taken for ids, or one message alone."""
    if isinstance(prompt, (bytes, bytearray, memoryview)):
        raise PromptError("the prompt is bytes — decode it to text, or give a list of token ids", "not_text")
    if isinstance(prompt, Mapping):
        raise PromptError("the prompt is a single message — give a list of messages", "messages")
    if not isinstance(prompt, Iterable | Chat):
        raise PromptError(f"the prompt is {type(prompt).__name__} — give text, token ids or messages", "not_text")


def is_token_id(value: object, vocab: int) -> bool:
    """Whether ``value`` is a whole number below ``vocab``."""
    return not isinstance(value, bool) and isinstance(value, (int, np.integer)) and 0 <= int(value) < vocab


def check_token(token: object, vocab: int) -> None:
    """Raises ValueError for what is not a token id."""
    if not is_token_id(token, vocab):
        raise ValueError(f"{token!r} is not a token id — ids are whole numbers from 0 to {vocab - 1}")


def _checked_ids(items: Iterable[int], vocab: int) -> list[int]:
    ids = []
    for item in items:
        if not is_token_id(item, vocab):
            raise PromptError(f"{item!r} is not a token id — ids are whole numbers from 0 to {vocab - 1}", "token_ids")
        ids.append(int(item))
    return ids
