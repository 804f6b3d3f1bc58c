"""What a request to Triton asks for: an OpenAI body, or a text with sampling parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ...request import Chunk
from ..errors import invalid
from ..openai.answer import OpenAnswer
from ..openai.body import parse_body
from ..openai.requests import ChatBody, CompletionBody, GenerationRequest, chat_request, completion_request, expect_model
from ..openai.responses import ResponseFormat
from ..settings import ServerSettings
from .texts import TextWriter


class EventWriter(Protocol):
    """The part of AnswerWriter that writes answers event by event."""

    def chunk(self, chunk: Chunk, answer: OpenAnswer, index: int) -> Sequence[Mapping[str, Any]]: ...

    def end(self, answer: OpenAnswer, queued: float, index: int) -> Sequence[Mapping[str, Any]]: ...

    def closing(self, answers: Sequence[OpenAnswer]) -> Sequence[Mapping[str, Any]]: ...


class BodyWriter:
    """``response``: the objects of ``written`` as JSON, each in a response of its own."""

    def __init__(self, written: ResponseFormat) -> None:
        self._written = written

    def chunk(self, chunk: Chunk, answer: OpenAnswer, index: int) -> Sequence[Mapping[str, Any]]:
        """The event of one round."""
        return _as_json(self._written.chunk(chunk, answer, index))

    def end(self, answer: OpenAnswer, queued: float, index: int) -> Sequence[Mapping[str, Any]]:
        """The last events of an answer."""
        return _as_json(self._written.end(answer, queued, index))

    def closing(self, answers: Sequence[OpenAnswer]) -> Sequence[Mapping[str, Any]]:
        """Events after all of them."""
        return _as_json(self._written.closing(answers))


class WholeWriter(BodyWriter):
    """The same as one object, at the end."""

    def __init__(self, written: ResponseFormat) -> None:
        super().__init__(written)
        self._chunks: list[list[Chunk]] = [[] for _ in range(written.request.count)]
        self._queued = 0.0

    def chunk(self, chunk: Chunk, answer: OpenAnswer, index: int) -> Sequence[Mapping[str, Any]]:
        """Nothing yet."""
        self._chunks[index].append(chunk)
        return []

    def end(self, answer: OpenAnswer, queued: float, index: int) -> Sequence[Mapping[str, Any]]:
        """Nothing yet."""
        self._queued = queued
        return []

    def closing(self, answers: Sequence[OpenAnswer]) -> Sequence[Mapping[str, Any]]:
        """All answers."""
        return _as_json([self._written.whole(answers, self._chunks, self._queued)])


@dataclass(frozen=True)
class Asked:
    """A checked request, and what writes its answers."""

    generation: GenerationRequest
    writer: EventWriter


def asked_of(inputs: Mapping[str, Any], model: str) -> Asked:
    """``inputs``: Triton's, None for those that are missing. ``model``: its name here. Raises ApiError."""
    body, text = inputs["request"], inputs["text_input"]
    if (body is None) == (text is None):
        raise invalid("give either text_input or request", "request")
    if body is None:
        generation = generation_request(text, bool(inputs["chat"]), inputs["sampling_parameters"])
        return Asked(generation, TextWriter(generation, bool(inputs["stream"])))
    fields = _object(body, "request")
    if is_chat := "messages" in fields:
        generation = chat_request(parse_body(ChatBody, body.encode()), ServerSettings.messages)
    else:
        generation = completion_request(parse_body(CompletionBody, body.encode()))
    expect_model(generation.model, model)
    written = ResponseFormat(is_chat, model, generation)
    return Asked(generation, BodyWriter(written) if generation.stream else WholeWriter(written))


def generation_request(text: str, chat: bool, parameters: str | None) -> GenerationRequest:
    """A text with the fields of /v1/completions, of which log-probabilities change nothing. Raises ApiError."""
    fields = _object(parameters or "{}", "sampling_parameters")
    request = completion_request(parse_body(CompletionBody, json.dumps({**fields, "prompt": text}).encode()))
    request = replace(request, params=replace(request.params, logprobs=None))
    return replace(request, prompt=[{"role": "user", "content": text}]) if chat else request


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = ()
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise invalid(f"{name} is not a JSON object", name)
    return fields


def _as_json(events: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [{"response": json.dumps(each, ensure_ascii=False)} for each in events]
