"""The tokenizer and the chat template of an engine directory: text or chat messages to token ids, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import EngineDirError, PromptError
from ..manifest.schema import Tokens
from .token_bytes import TokenBytes

Message = Mapping[str, str]
"""One chat turn: {"role": "system" | "user" | "assistant", "content": text}."""


class Tokenizer:
    """The tokenizer and chat template of an engine directory. Raises EngineDirError if one of them cannot be read."""

    def __init__(self, directory: Path, tokens: Tokens) -> None:
        import tokenizers

        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(directory / tokens.tokenizer))
        except Exception as error:  # the Rust side raises plain Exception
            raise EngineDirError(f"cannot read {directory / tokens.tokenizer}: {error} — export again with --force") from None
        self._template = _compiled(directory / tokens.chat_template) if tokens.chat_template else None
        self._special = {"bos_token": self._token(tokens.bos), "eos_token": self._token(tokens.stop[0] if tokens.stop else None)}
        self.token_bytes = TokenBytes(self._tokenizer)

    def _token(self, token: int | None) -> str:
        return "" if token is None else self._tokenizer.id_to_token(token) or ""

    def encode(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of plain text, or of chat messages rendered by the template. Raises PromptError."""
        text, special = (prompt, True) if isinstance(prompt, str) else (self.render(prompt), False)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise PromptError("the prompt contains lone surrogates, which are not text — decode the input as UTF-8", "not_text") from None
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def encode_raw(self, text: str) -> list[int]:
        """Token ids of ``text``. Special tokens in it are recognised, none is added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, without special tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def render(self, messages: Sequence[Message]) -> str:
        """Chat messages as the model's text, up to where its answer begins. Raises PromptError."""
        if self._template is None:
            raise PromptError("this model has no chat template — give the prompt as plain text", "no_chat_template")
        for message in messages:
            if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
                raise PromptError(f'a chat message needs "role" and "content", both text; this one is {message!r}', "messages")
        try:
            return str(self._template.render(messages=list(messages), add_generation_prompt=True, **self._special))
        except Exception as error:  # the template is a program from the model's authors; it may raise anything
            raise PromptError(f"the chat template refuses these messages: {error}", "messages") from None


def _compiled(file: Path) -> Any:
    """The compiled template, with Hugging Face's settings: a sandbox, trimmed blocks, raise_exception and strftime_now."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TemplateError) as error:
        raise EngineDirError(f"cannot read {file}: {error} — export again with --force") from None
