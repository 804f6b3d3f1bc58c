"""Answers as OpenAI's clients read them: whole objects, and events of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from ..decoder import Decoder
from ..logprobs import TokenLogprob
from ..request import Chunk
from ..stats import Stats
from .replica import Ended
from .requests import Ask

FINISH = {"eos": "stop", "stop_string": "stop", "length": "length", "deadline": "length"}
"""Decoder's reasons in OpenAI's words. A deadline cut the answer short, as a limit of tokens does; ``resps.stop`` tells them apart."""
Word = Callable[[int], str]
"""Text of one token."""
LEAST = -9999.0
"""Log-probability of what is impossible, as OpenAI's: JSON has no infinity."""


def words(decoder: Decoder) -> Word:
    """The text of single tokens, special ones too."""
    tokenizer = decoder._text._tokenizer
    return lambda token: str(tokenizer.decode([token], skip_special_tokens=False))


@dataclass(frozen=True)
class Form:
    """How one endpoint writes answers. ``word`` gives the text of a token, for logprobs."""

    chat: bool
    model: str
    ask: Ask
    word: Word
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
        choice |= {"logprobs": self._logprobs(chunks, 0), "finish_reason": FINISH[ended.stop]}
        return {**self._head(""), "choices": [choice], "usage": usage(ended.stats), "resps": extension(ended, queued)}

    def event(self, chunk: Chunk, before: int | None) -> dict[str, Any]:
        """One round. ``before``: characters shown before it, None for the first."""
        if self.chat:
            delta = {"content": chunk.text} if before is not None else {"role": "assistant", "content": chunk.text}
            choice: dict[str, Any] = {"index": 0, "delta": delta}
        else:
            choice = {"index": 0, "text": chunk.text}
        choice |= {"logprobs": self._logprobs([chunk], before or 0), "finish_reason": None}
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

    def _logprobs(self, chunks: Sequence[Chunk], before: int) -> dict[str, Any] | None:
        if self.ask.logprobs is None:
            return None
        tokens = [token for chunk in chunks for token in chunk.logprobs or ()]
        if self.chat:
            return {"content": [{**self._token(each.token, each.logprob), "top_logprobs": self._top(each)} for each in tokens]}
        words = [self.word(each.token) for each in tokens]
        offsets = list(accumulate(map(len, words), initial=before))[:-1]
        top = [{self.word(token): max(logprob, LEAST) for token, logprob in each.top} for each in tokens] if self.ask.logprobs else None
        logprobs = [max(each.logprob, LEAST) for each in tokens]
        return {"tokens": words, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets}

    def _top(self, token: TokenLogprob) -> list[dict[str, Any]]:
        return [self._token(other, logprob) for other, logprob in token.top]

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        """``bytes`` is null for a token that is a part of a character: its own bytes are not known here."""
        word = self.word(token)
        return {"token": word, "logprob": max(logprob, LEAST), "bytes": None if "\ufffd" in word else list(word.encode())}


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
