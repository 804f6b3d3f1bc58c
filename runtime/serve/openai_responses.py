"""Answers as OpenAI's clients read them: whole objects, and events of a stream."""

from __future__ import annotations

import time
import uuid
from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..decoder import Decoder
from ..decoding.logprobs import TokenLogprob
from ..decoding.stats import Stats
from ..request import Chunk
from .openai_requests import GenerationRequest
from .replica import Ended

FINISH = {"eos": "stop", "stop_string": "stop", "length": "length", "deadline": "length"}
"""Decoder's reasons in OpenAI's words. A deadline cut the answer short, as a limit of tokens does; ``resps.stop`` tells them apart."""
LEAST = -9999.0
"""Log-probability of what is impossible, as OpenAI's: JSON has no infinity."""


class Spelling:
    """The tokens of one answer as text, in their order: the first begins the text, and a character may take several tokens.

    ``begun``: whether an event of the answer was made; ``characters``: how many the tokens so far have completed.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._text = getincrementaldecoder("utf-8")("replace")
        self._first = True
        self.begun = False
        self.characters = 0

    def added(self, token: int) -> bytes:
        """What ``token`` would add here."""
        return self._decoder.token_bytes(token, first=self._first)

    def word(self, token: int) -> str:
        """For people: special tokens by their names."""
        return self._name(token).decode("utf-8", "replace")

    def key(self, token: int) -> str:
        """The same, and a part of a character by its bytes, as in OpenAI's completions, which have no other place for them."""
        name = self._name(token)
        try:
            return name.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{each:02x}" for each in name)

    def _name(self, token: int) -> bytes:
        return self._decoder.token_bytes(token, first=self._first, special=True)

    def take(self, token: int) -> None:
        """``token`` was chosen."""
        self.characters += len(self._text.decode(self.added(token)))
        self._first = self._first and not self._decoder.token_bytes(token)


@dataclass(frozen=True)
class ResponseFormat:
    """How one endpoint writes answers. ``decoder`` spells the tokens, for logprobs."""

    chat: bool
    model: str
    ask: GenerationRequest
    decoder: Decoder
    id: str = field(init=False)
    created: int = field(init=False, default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}")

    def whole(self, chunks: Sequence[Chunk], ended: Ended, queued: float) -> dict[str, Any]:
        """The whole answer as one object."""
        text = "".join(chunk.text for chunk in chunks)
        if self.chat:
            choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None}}
        else:
            choice = {"index": 0, "text": text}
        choice |= {"logprobs": self._logprobs(chunks, Spelling(self.decoder)), "finish_reason": FINISH[ended.stop]}
        return {**self._head(""), "choices": [choice], "usage": usage(ended.stats), "resps": extension(ended, queued)}

    def event(self, chunk: Chunk, spelling: Spelling) -> dict[str, Any]:
        """One round. ``spelling``: of this answer, the same for all its events."""
        if self.chat:
            delta = {"content": chunk.text} if spelling.begun else {"role": "assistant", "content": chunk.text}
            choice: dict[str, Any] = {"index": 0, "delta": delta}
        else:
            choice = {"index": 0, "text": chunk.text}
        choice |= {"logprobs": self._logprobs([chunk], spelling), "finish_reason": None}
        spelling.begun = True
        return {**self._head(".chunk"), "choices": [choice], **self._no_usage}

    def end(self, ended: Ended, queued: float) -> dict[str, Any]:
        """The last event of the choice: why it ended, and what it cost."""
        empty: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        choice = {"index": 0, **empty, "logprobs": None, "finish_reason": FINISH[ended.stop]}
        return {**self._head(".chunk"), "choices": [choice], **self._no_usage, "resps": extension(ended, queued)}

    def usage(self, ended: Ended) -> dict[str, Any]:
        """The event that ``stream_options.include_usage`` asks for."""
        return {**self._head(".chunk"), "choices": [], "usage": usage(ended.stats)}

    @property
    def _no_usage(self) -> dict[str, Any]:
        return {"usage": None} if self.ask.include_usage else {}

    def _head(self, chunk: str) -> dict[str, Any]:
        kind = f"chat.completion{chunk}" if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, chunks: Sequence[Chunk], spelling: Spelling) -> dict[str, Any] | None:
        if self.ask.params.logprobs is None:
            return None
        tokens = [token for chunk in chunks for token in chunk.logprobs or ()]
        return {"content": [_entry(each, spelling) for each in tokens]} if self.chat else self._table(tokens, spelling)

    def _table(self, tokens: Sequence[TokenLogprob], spelling: Spelling) -> dict[str, Any]:
        """The form of /v1/completions: a list for each property."""
        words, offsets, top = list[str](), list[int](), list[dict[str, float]]()
        for each in tokens:
            words.append(spelling.key(each.token))
            offsets.append(spelling.characters)
            top.append({spelling.key(token): max(logprob, LEAST) for token, logprob in reversed(each.top)})  # of one key the likelier stays
            spelling.take(each.token)
        logprobs = [max(each.logprob, LEAST) for each in tokens]
        return {
            "tokens": words,
            "token_logprobs": logprobs,
            "top_logprobs": top if self.ask.params.logprobs else None,
            "text_offset": offsets,
        }


def _entry(token: TokenLogprob, spelling: Spelling) -> dict[str, Any]:
    """A token in the form of /v1/chat/completions. ``bytes`` of all entries joined are the answer's text: special tokens have none."""

    def told(token: int, logprob: float) -> dict[str, Any]:
        return {"token": spelling.word(token), "logprob": max(logprob, LEAST), "bytes": list(spelling.added(token))}

    entry = {**told(token.token, token.logprob), "top_logprobs": [told(*each) for each in token.top]}
    spelling.take(token.token)
    return entry


def usage(stats: Stats) -> dict[str, Any]:
    """Tokens, the stop token among them. ``accepted_prediction_tokens``: how many of the answer's the draft had guessed."""
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.new_tokens,
        "total_tokens": stats.prompt_tokens + stats.new_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.cached_prompt_tokens},
        "completion_tokens_details": {"accepted_prediction_tokens": stats.accepted},
    }


def extension(ended: Ended, queued: float) -> dict[str, Any]:
    """Ours: the Decoder's own word for the end, seconds in the queue, and the Decoder's statistics."""
    return {"stop": ended.stop, "queue_seconds": round(queued, 6), "stats": ended.stats.as_dict()}
