"""The tokenizer and the chat templates of an engine directory: text or chat messages to token ids, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import EngineDirError, PromptError
from ..manifest.schema import Tokens
from .template import ChatTemplate, TemplateFault
from .token_bytes import TokenBytes

Message = Mapping[str, Any]
"""One chat turn: {"role": "system" | "user" | "assistant", "content": text}. Other keys reach the template as they are."""


@dataclass(frozen=True)
class Chat:
    """A conversation with what its template reads besides. ``tools``: descriptions of functions, as OpenAI's API has them. ``values``:
    variables of this model's template, such as enable_thinking. ``null_content``: whether its template asks if content is none, not if it
    is defined."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    null_content: bool = False


_DEFAULT, _WITH_TOOLS = "default", "tool_use"  # names of templates


class Tokenizer:
    """The tokenizer and chat templates of an engine directory. Raises EngineDirError if one of them cannot be read."""

    def __init__(self, directory: Path, tokens: Tokens) -> None:
        import tokenizers

        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(directory / tokens.tokenizer))
        except Exception as error:  # the Rust side raises plain Exception
            raise EngineDirError(f"cannot read {directory / tokens.tokenizer}: {error} — export again with --force") from None
        self._tokenizer.encode_special_tokens = tokens.split_special
        self._templates = {name: _compiled(directory / file) for name, file in tokens.chat_templates.items()}
        self._tokens = tokens
        self.token_bytes = TokenBytes(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder().items()
        self.added: Mapping[int, str] = {token: each.content for token, each in added}
        """Tokens that are no parts of words, special or not, with their texts."""
        self.hidden: Mapping[int, str] = {token: each.content for token, each in added if each.special}
        """Special tokens, which ``decode`` leaves out, with their texts."""

    def encode(self, prompt: str | Sequence[Message] | Chat) -> list[int]:
        """Token ids of plain text, or of chat messages rendered by the template. Raises PromptError."""
        if isinstance(prompt, str):
            return self._ids(prompt, special=True)
        chat = prompt if isinstance(prompt, Chat) else Chat(prompt)
        return self.encode_rendered(self.render(chat.messages, chat.tools, values=chat.values, null_content=chat.null_content))

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of ``text``, which a chat template rendered, or of its beginning. Raises PromptError."""
        ids, bos = self._ids(text, special=False), self._tokens.bos
        return [bos, *ids] if self._tokens.chat_bos and bos is not None and ids[:1] != [bos] else ids

    def _ids(self, text: str, special: bool) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise PromptError("the prompt contains lone surrogates, which are not text — decode the input as UTF-8", "not_text") from None
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=special).ids)
        except Exception as error:  # the Rust side raises plain Exception
            raise PromptError(f"the tokenizer cannot encode the prompt: {error} — leave out what it does not know", "not_text") from None

    def encode_raw(self, text: str) -> list[int]:
        """Token ids of ``text``. Special tokens in it are recognised, none is added. Raises PromptError."""
        return self._ids(text, special=False)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, without special tokens: what ``token_bytes`` joins to, with one U+FFFD for every maximal part of a
        character that stayed incomplete (Unicode 3.9), as bytes.decode has it."""
        # The decoder of byte fallback drops all bytes beside an incomplete character; that of suffixes drops the last space.
        text = str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))
        if self.token_bytes.has_suffix or ("\ufffd" in text and self.token_bytes.has_fallback):
            return self.token_bytes.join(tokens).decode("utf-8", "replace")
        return text

    def token_id(self, text: str) -> int | None:
        """The token that stands for ``text`` alone, special or not; None if there is none."""
        found = self._tokenizer.token_to_id(text)
        return None if found is None else int(found)

    def piece(self, token: int) -> str | None:
        """The name of a token in the vocabulary, None for an id without one."""
        name = self._tokenizer.id_to_token(token)
        return None if name is None else str(name)

    @property
    def template_source(self) -> str:
        """The text of the template for chats without tools; "" if there is none."""
        return self._templates[_DEFAULT].source if _DEFAULT in self._templates else ""

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        values: Mapping[str, Any] = MappingProxyType({}),
        null_content: bool = False,
    ) -> str:
        """Chat messages as the model's text, up to where its answer begins. ``tools`` (JSON schemas) choose the template for tools, if
        there is one. ``values``, ``null_content``: as in Chat. Raises PromptError."""
        template = self._template(tools is not None)
        for message in messages:
            if not isinstance(message, Mapping) or not _is_turn(message):
                raise PromptError(f'a chat message needs "role" and "content", both text; this one is {message!r}', "messages")
        try:
            return template.render(messages, self._tokens.special, tools, documents, values, null_content)
        except TemplateFault as error:
            raise PromptError(f"the chat template refuses these messages: {error}", "messages") from None

    def _template(self, tools: bool) -> ChatTemplate:
        name = _WITH_TOOLS if tools and _WITH_TOOLS in {*self._templates, *self._tokens.unusable} else _DEFAULT
        if name in self._templates:
            return self._templates[name]
        if name in self._tokens.unusable:
            reason = f"this model's chat template cannot be used: {self._tokens.unusable[name]}"
        elif self._templates:
            reason = f"this model has chat templates named {', '.join(self._templates)} and no default"
        else:
            reason = "this model has no chat template"
        raise PromptError(f"{reason} — give the prompt as plain text", "no_chat_template")


def _is_turn(message: Message) -> bool:
    """Whether a message has a role and text. A turn that only calls tools has no text."""
    content = message.get("content")
    return isinstance(message.get("role"), str) and (isinstance(content, str) or (content is None and bool(message.get("tool_calls"))))


def _compiled(file: Path) -> ChatTemplate:
    try:
        return ChatTemplate(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineDirError(f"cannot read {file}: {error} — export again with --force") from None
