"""One answer while it comes: its tokens spelled, its text divided into parts."""

from __future__ import annotations

import uuid
from codecs import getincrementaldecoder
from collections.abc import Sequence
from functools import partial

from ...decoder import Decoder
from ...request import Chunk
from ...tool_calls.choose import AnswerFormat
from ...tool_calls.functions import Tools
from ...tool_calls.parts import Part, Text
from ...tool_calls.reasoning import ReasoningTokens
from ..replica import Finished
from .rounds import RoundWriter

FINISH_REASONS = {"eos": "stop", "stop_string": "stop", "length": "length", "deadline": "length"}
"""OpenAI's finish_reason by the Decoder's stop reason. A deadline cuts an answer as a token limit does; ``resps.stop`` tells which."""


class TokenSpeller:
    """Spells the tokens of one answer, in their order: the first one begins the text if ``prompt`` (its ids) has none, and a character may
    take several tokens.

    ``characters``: number of characters that the tokens so far completed.
    """

    def __init__(self, decoder: Decoder, prompt: Sequence[int]) -> None:
        self._decoder = decoder
        self._utf8 = getincrementaldecoder("utf-8")("replace")
        self._first = not any(map(decoder.token_bytes, prompt))
        self.characters = 0

    def text_bytes(self, token: int) -> bytes:
        """The bytes that ``token`` would add to the text here. Special tokens add none."""
        return self._decoder.token_bytes(token, first=self._first)

    def text(self, token: int) -> str:
        """The token's text, or a special token's name. Invalid UTF-8 becomes U+FFFD."""
        return self._name(token).decode("utf-8", "replace")

    def key(self, token: int) -> str:
        """Like ``text``, but a part of a character is written as its bytes: /v1/completions has no field for bytes."""
        name = self._name(token)
        try:
            return name.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{each:02x}" for each in name)

    def _name(self, token: int) -> bytes:
        return self._decoder.token_bytes(token, first=self._first, special=True)

    def advance(self, token: int) -> None:
        """Move on to the position after ``token``, which was generated here."""
        self.characters += len(self._utf8.decode(self.text_bytes(token)))
        self._first = self._first and not self._decoder.token_bytes(token)


class OpenAnswer:
    """An answer to ``prompt`` (its ids), in the form of a model's answers. ``form``: None for plain text. ``opened``: whether the prompt
    has begun the reasoning.

    ``started``: the answer's first event was made. ``written``: how many calls were written. ``rounds``: writes
    where its tokens came from. ``finished``: its end, once it has come.
    """

    def __init__(self, decoder: Decoder, prompt: Sequence[int], form: AnswerFormat | None, tools: Tools | None, opened: bool) -> None:
        self.speller, self.started, self.written = TokenSpeller(decoder, prompt), False, 0
        self.rounds = RoundWriter(decoder, prompt)
        self.finished: Finished | None = None
        self._parser = form.parser(tools, opened) if form else None
        marks = form.reasoning if form else None
        self._thought = ReasoningTokens(marks, opened, partial(decoder.token_bytes, special=True)) if marks else None
        self._id_size = form.calls.id_size if form else None

    def parts(self, chunk: Chunk) -> list[Part]:
        """What a round adds."""
        if self._thought is not None:
            self._thought.push(chunk.tokens)
        if self._parser is None:
            return [Text(chunk.text)] if chunk.text else []
        return self._parser.push(chunk.text)

    def rest(self) -> list[Part]:
        """What was withheld, at the end of the answer."""
        return self._parser.flush() if self._parser is not None else []

    def new_call_id(self) -> str:
        """An id for the next call, as the model's template takes it."""
        number = uuid.uuid4().hex
        return f"call_{number}" if self._id_size is None else number[: self._id_size]

    @property
    def reasoning_tokens(self) -> int:
        """Of the tokens so far."""
        return self._thought.count if self._thought is not None else 0

    @property
    def end(self) -> Finished:
        """``finished``, of an answer that is."""
        assert self.finished is not None
        return self.finished

    @property
    def finish_reason(self) -> str:
        """OpenAI's."""
        reason = FINISH_REASONS[self.end.stop]
        return "tool_calls" if self.written and reason == "stop" else reason
