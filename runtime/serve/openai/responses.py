"""Answers in OpenAI's format: whole objects and events of a stream."""

from __future__ import annotations

import time
import uuid
from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...decoder import Decoder
from ...decoding.logprobs import TokenLogprob
from ...request import Chunk
from ..replica import Finished
from .requests import GenerationRequest
from .rounds import RoundWriter

FINISH_REASONS = {"eos": "stop", "stop_string": "stop", "length": "length", "deadline": "length"}
"""OpenAI's finish_reason by the Decoder's stop reason. A deadline cuts an answer as a token limit does; ``resps.stop`` tells which."""
MIN_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks. OpenAI's API uses the same number."""


class TokenSpeller:
    """Spells the tokens of one answer, in their order: the first one begins the text if ``prompt`` (its ids) has none, and a character may
    take several tokens.

    ``started``: the answer's first event was made. ``characters``: number of characters that the tokens so far completed. ``rounds``:
    writes the answer's rounds.
    """

    def __init__(self, decoder: Decoder, prompt: Sequence[int]) -> None:
        self._decoder = decoder
        self._utf8 = getincrementaldecoder("utf-8")("replace")
        self._first = not any(map(decoder.token_bytes, prompt))
        self.started = False
        self.rounds = RoundWriter(decoder, prompt)
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


@dataclass(frozen=True)
class Answered:
    """One whole answer. ``speller``: a new one."""

    chunks: Sequence[Chunk]
    finished: Finished
    speller: TokenSpeller


@dataclass(frozen=True)
class ResponseFormat:
    """Writes the answers of one request in the format of its endpoint."""

    is_chat: bool
    model: str
    request: GenerationRequest
    id: str = field(init=False)
    created: int = field(init=False, default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}")

    def whole(self, answers: Sequence[Answered], queued: float) -> dict[str, Any]:
        """All answers as one object. ``queued``: seconds in the queue."""
        choices, every = [], [each.finished for each in answers]
        for index, answer in enumerate(answers):
            text = "".join(chunk.text for chunk in answer.chunks)
            own: dict[str, Any] = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.is_chat else {"text": text}
            logprobs = self._logprobs(answer.chunks, answer.speller)
            choices.append({"index": index, **own, "logprobs": logprobs, "finish_reason": FINISH_REASONS[answer.finished.stop]})
        extensions = [{**extension(each.finished, queued), **self._rounds(each)} for each in answers]
        return {**self._header(""), "choices": choices, "usage": usage(every), "resps": extensions if len(every) > 1 else extensions[0]}

    def chunk_event(self, chunk: Chunk, speller: TokenSpeller, index: int) -> dict[str, Any]:
        """The event of one round. ``speller``: the same object for all events of this answer. ``index``: of the answer."""
        if self.is_chat:
            delta = {"content": chunk.text} if speller.started else {"role": "assistant", "content": chunk.text}
            choice: dict[str, Any] = {"index": index, "delta": delta}
        else:
            choice = {"index": index, "text": chunk.text}
        choice |= {"logprobs": self._logprobs([chunk], speller), "finish_reason": None}
        speller.started = True
        extra = {"resps": {"round": speller.rounds.written(chunk)}} if self.request.params.rounds else {}
        return {**self._header(".chunk"), "choices": [choice], **self._no_usage, **extra}

    def final_event(self, finished: Finished, queued: float, index: int) -> dict[str, Any]:
        """The last event of a choice: its finish reason and statistics."""
        empty: dict[str, Any] = {"delta": {}} if self.is_chat else {"text": ""}
        choice = {"index": index, **empty, "logprobs": None, "finish_reason": FINISH_REASONS[finished.stop]}
        return {**self._header(".chunk"), "choices": [choice], **self._no_usage, "resps": extension(finished, queued)}

    def usage_event(self, finished: Sequence[Finished]) -> dict[str, Any]:
        """The event after all of them, sent if the request set ``stream_options.include_usage``."""
        return {**self._header(".chunk"), "choices": [], "usage": usage(finished)}

    @property
    def _no_usage(self) -> dict[str, Any]:
        return {"usage": None} if self.request.include_usage else {}

    def _rounds(self, answer: Answered) -> dict[str, Any]:
        return {"rounds": [answer.speller.rounds.written(chunk) for chunk in answer.chunks]} if self.request.params.rounds else {}

    def _header(self, chunk: str) -> dict[str, Any]:
        kind = f"chat.completion{chunk}" if self.is_chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, chunks: Sequence[Chunk], speller: TokenSpeller) -> dict[str, Any] | None:
        if self.request.params.logprobs is None:
            return None
        tokens = [token for chunk in chunks for token in chunk.logprobs or ()]
        return (
            {"content": [_chat_logprob(each, speller) for each in tokens]} if self.is_chat else self._completion_logprobs(tokens, speller)
        )

    def _completion_logprobs(self, tokens: Sequence[TokenLogprob], speller: TokenSpeller) -> dict[str, Any]:
        """The format of /v1/completions: one list per property."""
        keys, offsets, top = list[str](), list[int](), list[dict[str, float]]()
        for each in tokens:
            keys.append(speller.key(each.token))
            offsets.append(speller.characters)
            likeliest_last = reversed(each.top)  # so that the likeliest of equal keys wins
            top.append({speller.key(token): max(logprob, MIN_LOGPROB) for token, logprob in likeliest_last})
            speller.advance(each.token)
        logprobs = [max(each.logprob, MIN_LOGPROB) for each in tokens]
        return {
            "tokens": keys,
            "token_logprobs": logprobs,
            "top_logprobs": top if self.request.params.logprobs else None,
            "text_offset": offsets,
        }


def _chat_logprob(token: TokenLogprob, speller: TokenSpeller) -> dict[str, Any]:
    """The format of /v1/chat/completions for one token. The joined ``bytes`` of all entries are the answer's text."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": speller.text(token), "logprob": max(logprob, MIN_LOGPROB), "bytes": list(speller.text_bytes(token))}

    content = {**entry(token.token, token.logprob), "top_logprobs": [entry(*each) for each in token.top]}
    speller.advance(token.token)
    return content


def usage(answers: Sequence[Finished]) -> dict[str, Any]:
    """Token counts; the prompt counts once, a stop token as a completion token. ``accepted_prediction_tokens``: accepted draft tokens."""
    prompt, cached = answers[0].stats.prompt_tokens, min(each.stats.cached_prompt_tokens for each in answers)
    completion, accepted = sum(each.stats.new_tokens for each in answers), sum(each.stats.accepted for each in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"accepted_prediction_tokens": accepted},
    }


def extension(finished: Finished, queued: float) -> dict[str, Any]:
    """Our field ``resps``: the Decoder's stop reason, seconds in the queue and the Decoder's statistics."""
    return {"stop": finished.stop, "queue_seconds": round(queued, 6), "stats": finished.stats.as_dict()}
