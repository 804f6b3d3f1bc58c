"""Answers of /v1/responses: items that are begun, filled and ended, with OpenAI's events in their order."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ...request import Chunk
from ...tool_calls.parts import Arguments, Call, Part, Reasoning, Text
from ..errors import ApiError
from .answer import OpenAnswer
from .responses import extension

Event = dict[str, Any]
_KINDS = {Text: "message", Reasoning: "reasoning"}
_DELTAS = {"message": "response.output_text", "reasoning": "response.reasoning_text", "function_call": "response.function_call_arguments"}


class ResponseWriter:
    """Writes the answer to one request. ``echoed``: fields of the request that the response has, too."""

    def __init__(self, model: str, echoed: Mapping[str, Any]) -> None:
        self._id, self._created, self._model, self._echoed = f"resp_{uuid.uuid4().hex}", int(time.time()), model, echoed
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the last item, while it is filled
        self._text = ""  # of it
        self._number = 0  # of the next event

    def whole(self, answers: Sequence[OpenAnswer], chunks: Sequence[Sequence[Chunk]], queued: float) -> dict[str, Any]:
        """The finished answer, of whose ``chunks`` nothing was sent. ``queued``: seconds in the queue."""
        for chunk in chunks[0]:
            self.chunk(chunk, answers[0], 0)
        response: dict[str, Any] = self.end(answers[0], queued, 0)[-1]["response"]
        return response

    def opening(self) -> list[Event]:
        """Events before the first round."""
        return [self._event(f"response.{kind}", response=self._response("in_progress")) for kind in ("created", "in_progress")]

    def chunk(self, chunk: Chunk, answer: OpenAnswer, index: int) -> list[Event]:
        """Events of one round."""
        return self._events(answer.parts(chunk), answer)

    def end(self, answer: OpenAnswer, queued: float, index: int) -> list[Event]:
        """The last events: what was withheld, the end of the last item, and the whole response."""
        events = self._events(answer.rest(), answer)
        message: dict[str, Any] = {"role": "assistant", "content": []}
        status = "incomplete" if answer.finish_reason == "length" else "completed"
        if not any(each["type"] != "reasoning" for each in self._output) and status == "completed":  # nothing was said
            events += self._finish(status) + self._begin("message", message)
        events += self._finish(status)
        response = self._response(status) | {"usage": _usage(answer), "resps": extension(answer.end, queued)}
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        return [*events, self._event(f"response.{status}", response=response)]

    def closing(self, answers: Sequence[OpenAnswer]) -> list[Event]:
        """Nothing follows."""
        return []

    def failure(self, error: ApiError) -> Event:
        """The event of a failure after the first byte."""
        reason = {"code": "server_error", "message": error.body["error"]["message"]}
        return self._event("response.failed", response=self._response("failed") | {"error": reason})

    @staticmethod
    def encoded(event: Mapping[str, Any] | None) -> bytes:
        """An event as it is sent; the last one ends the stream."""
        return b"" if event is None else f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()

    def _events(self, parts: Sequence[Part], answer: OpenAnswer) -> list[Event]:
        events: list[Event] = []
        for part in parts:
            match part:
                case Call(name):
                    answer.written += 1
                    call = {"call_id": answer.new_call_id(), "name": name, "arguments": ""}
                    events += self._finish("completed") + self._begin("function_call", call)
                case Arguments(text):
                    events.append(self._delta(text))
                case _:
                    kind = _KINDS[type(part)]
                    if self._open is None or self._open["type"] != kind:
                        own: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
                        events += self._finish("completed") + self._begin(kind, {"content": [], **own})
                    events.append(self._delta(part.text))
        return events

    def _begin(self, kind: str, own: Mapping[str, Any]) -> list[Event]:
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        self._open, self._text = {"id": f"{prefix}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress", **own}, ""
        self._output.append(self._open)
        added = self._event("response.output_item.added", output_index=len(self._output) - 1, item=dict(self._open))
        return (
            [added]
            if kind == "function_call"
            else [added, self._of_item("response.content_part.added", content_index=0, part=self._part())]
        )

    def _delta(self, text: str) -> Event:
        assert self._open is not None
        self._text += text
        kind = self._open["type"]
        return self._of_item(f"{_DELTAS[kind]}.delta", delta=text, **_place(kind))

    def _finish(self, status: str) -> list[Event]:
        """The end of the item that is open."""
        item, self_text = self._open, self._text
        if item is None:
            return []
        kind = item["type"]
        if kind == "function_call":
            item["arguments"] = self_text
            events = [self._of_item(f"{_DELTAS[kind]}.done", name=item["name"], arguments=self_text)]
        else:
            item["content"] = [self._part()]
            events = [
                self._of_item(f"{_DELTAS[kind]}.done", text=self_text, **_place(kind)),
                self._of_item("response.content_part.done", content_index=0, part=self._part()),
            ]
        item["status"] = status
        events.append(self._event("response.output_item.done", output_index=len(self._output) - 1, item=dict(item)))
        self._open = None
        return events

    def _part(self) -> dict[str, Any]:
        """The content of the open item."""
        assert self._open is not None
        if self._open["type"] == "reasoning":
            return {"type": "reasoning_text", "text": self._text}
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": []}

    def _of_item(self, kind: str, **fields: Any) -> Event:
        assert self._open is not None
        return self._event(kind, item_id=self._open["id"], output_index=len(self._output) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "model": self._model,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": list(self._output),
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **self._echoed,
        }


def _place(kind: str) -> dict[str, Any]:
    """Fields of the events of text that is a part of an item."""
    if kind == "function_call":
        return {}
    return {"content_index": 0, "logprobs": []} if kind == "message" else {"content_index": 0}


def _usage(answer: OpenAnswer) -> dict[str, Any]:
    stats = answer.end.stats
    return {
        "input_tokens": stats.prompt_tokens,
        "input_tokens_details": {"cached_tokens": stats.cached_prompt_tokens, "cache_write_tokens": 0},
        "output_tokens": stats.new_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": stats.prompt_tokens + stats.new_tokens,
    }
