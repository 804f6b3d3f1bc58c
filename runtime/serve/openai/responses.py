"""Answers of /v1/chat/completions and /v1/completions: whole objects and events of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...decoding.logprobs import TokenLogprob
from ...request import Chunk
from ...tool_calls.parts import Arguments, Call, Part, Reasoning, Text
from ..errors import ApiError
from ..observation.body import statistics
from ..replica import Finished
from .answer import OpenAnswer, TokenSpeller
from .requests import GenerationRequest

MIN_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks. OpenAI's API uses the same number."""


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

    def whole(self, answers: Sequence[OpenAnswer], chunks: Sequence[Sequence[Chunk]], queued: float) -> dict[str, Any]:
        """All finished answers, of whose ``chunks`` nothing was sent, as one object. ``queued``: seconds in the queue."""
        choices = []
        for index, (answer, own) in enumerate(zip(answers, chunks, strict=True)):
            parts = [part for chunk in own for part in answer.parts(chunk)] + answer.rest()
            said = self._message(parts, answer) if self.is_chat else {"text": _text(parts)}
            logprobs = self._logprobs(own, answer.speller)
            choices.append({"index": index, **said, "logprobs": logprobs, "finish_reason": answer.finish_reason})
        extensions = [{**extension(each.end, queued), **self._rounds(each, own)} for each, own in zip(answers, chunks, strict=True)]
        return {
            **self._header(""),
            "choices": choices,
            "usage": usage(answers),
            "resps": extensions if len(extensions) > 1 else extensions[0],
            **self._extras(answers),
        }

    def _message(self, parts: Sequence[Part], answer: OpenAnswer) -> dict[str, Any]:
        delta = _delta(parts, answer)
        calls = [{key: value for key, value in call.items() if key != "index"} for call in delta.get("tool_calls", ())]
        content = delta.get("content")
        message: dict[str, Any] = {"role": "assistant", "content": content if content or calls else "", "refusal": None}
        if "reasoning_content" in delta:
            message["reasoning_content"] = delta["reasoning_content"]
        return {"message": {**message, "tool_calls": calls} if calls else message}

    def opening(self) -> list[dict[str, Any]]:
        """Events before the first round."""
        return []

    def chunk(self, chunk: Chunk, answer: OpenAnswer, index: int) -> list[dict[str, Any]]:
        """The event of one round. ``answer``: the same object for all events of this answer, ``index`` of all."""
        event = self._event(answer.parts(chunk), self._logprobs([chunk], answer.speller), answer, index)
        return [{**event, "resps": {"round": answer.rounds.written(chunk)}} if self.request.params.rounds else event]

    def end(self, answer: OpenAnswer, queued: float, index: int) -> list[dict[str, Any]]:
        """The last events of a finished answer: what was withheld, its finish reason and statistics."""
        rest = answer.rest()
        events = [self._event(rest, self._logprobs([], answer.speller), answer, index)] if rest else []
        empty: dict[str, Any] = {"delta": {}} if self.is_chat else {"text": ""}
        choice = {"index": index, **empty, "logprobs": None, "finish_reason": answer.finish_reason}
        last = self.request.count == 1 and not self.request.include_usage  # else the event with the usage has them, once, as vLLM's
        extras = self._extras([answer]) if last else {}
        final = {**self._header(".chunk"), "choices": [choice], **self._no_usage, "resps": extension(answer.end, queued), **extras}
        return [*events, final]

    def closing(self, answers: Sequence[OpenAnswer]) -> list[dict[str, Any]]:
        """Events after all of them: the usage, if the request set ``stream_options.include_usage``."""
        if not self.request.include_usage:
            return []
        return [{**self._header(".chunk"), "choices": [], "usage": usage(answers), **self._extras(answers)}]

    def _extras(self, answers: Sequence[OpenAnswer]) -> dict[str, Any]:
        return statistics([each.end.stats for each in answers], self.request.spec_metrics, self.request.timings)

    def _rounds(self, answer: OpenAnswer, chunks: Sequence[Chunk]) -> dict[str, Any]:
        return {"rounds": [answer.rounds.written(chunk) for chunk in chunks]} if self.request.params.rounds else {}

    def failure(self, error: ApiError) -> dict[str, Any]:
        """The event of a failure after the first byte."""
        return error.body

    @staticmethod
    def encoded(event: Mapping[str, Any] | None) -> bytes:
        """An event as it is sent; None stands for the end of a complete stream."""
        return b"data: " + (b"[DONE]" if event is None else json.dumps(event, ensure_ascii=False).encode()) + b"\n\n"

    def _event(self, parts: Sequence[Part], logprobs: dict[str, Any] | None, answer: OpenAnswer, index: int) -> dict[str, Any]:
        if self.is_chat:
            role = {} if answer.started else {"role": "assistant"}
            own: dict[str, Any] = {"delta": {**role, **(_delta(parts, answer) or {"content": ""})}}
        else:
            own = {"text": _text(parts)}
        answer.started = True
        choice = {"index": index, **own, "logprobs": logprobs, "finish_reason": None}
        return {**self._header(".chunk"), "choices": [choice], **self._no_usage}

    @property
    def _no_usage(self) -> dict[str, Any]:
        return {"usage": None} if self.request.include_usage else {}

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


def _text(parts: Sequence[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Text))


def _delta(parts: Sequence[Part], answer: OpenAnswer) -> dict[str, Any]:
    """Parts as OpenAI's delta: of each call first its id and name, then pieces of its arguments."""
    delta: dict[str, Any] = {}
    for part in parts:
        match part:
            case Text(text):
                delta["content"] = delta.get("content", "") + text
            case Reasoning(text):
                delta["reasoning_content"] = delta.get("reasoning_content", "") + text
            case Call(name):
                call = {
                    "index": answer.written,
                    "id": answer.new_call_id(),
                    "type": "function",
                    "function": {"name": name, "arguments": ""},
                }
                delta.setdefault("tool_calls", []).append(call)
                answer.written += 1
            case Arguments(text):
                calls = delta.setdefault("tool_calls", [])
                if not calls:
                    calls.append({"index": answer.written - 1, "function": {"arguments": ""}})
                calls[-1]["function"]["arguments"] += text
    return delta


def usage(answers: Sequence[OpenAnswer]) -> dict[str, Any]:
    """Token counts of finished answers; the prompt counts once, a stop token as a completion token. ``accepted_prediction_tokens``:
    accepted draft tokens."""
    every = [each.end.stats for each in answers]
    prompt, cached = every[0].prompt_tokens, min(each.cached_prompt_tokens for each in every)
    completion, accepted = sum(each.new_tokens for each in every), sum(each.accepted for each in every)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "reasoning_tokens": sum(each.reasoning_tokens for each in answers),
        },
    }


def extension(finished: Finished, queued: float) -> dict[str, Any]:
    """Our field ``resps``: the Decoder's stop reason, seconds in the queue and the Decoder's statistics."""
    return {"stop": finished.stop, "queue_seconds": round(queued, 6), "stats": finished.stats.as_dict()}
