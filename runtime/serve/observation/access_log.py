"""The access log: a line of JSON for each request, without prompts unless they are asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from time import monotonic
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..protection.access import SCOPE_KEY
from .json_lines import JsonLines
from .record import record_of


class AccessLog:
    """Writes to ``lines`` what each request was and how it ended. ``prompts``: whether the body is written, too. A query is never written,
    as it may hold a secret."""

    def __init__(self, app: ASGIApp, lines: JsonLines, prompts: bool) -> None:
        self._app, self._lines, self._prompts = app, lines, prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, seen = monotonic(), {"status": 0, "bytes_in": 0, "bytes_out": 0}
        body = bytearray()

        async def counted_receive() -> Message:
            message = await receive()
            piece = message.get("body", b"")
            seen["bytes_in"] += len(piece)
            if self._prompts:
                body.extend(piece)
            return message

        async def counted_send(message: Message) -> None:
            seen["status"] = message.get("status", seen["status"])
            seen["bytes_out"] += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            line = {**_request(scope), **seen, "seconds": round(monotonic() - began, 6), **_answer(scope)}
            if self._prompts:
                line["body"] = body.decode("utf-8", "replace")
            self._lines.write(line)


def _request(scope: Scope) -> dict[str, Any]:
    key, client = scope.get(SCOPE_KEY), scope.get("client")
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "client": client[0] if client else None,
        "key": key.name or None if key else None,
        "method": scope["method"],
        "path": scope["path"],
    }


def _answer(scope: Scope) -> dict[str, Any]:
    record = record_of(scope)
    if record is None:
        return {}
    return {
        "outcome": record.outcome,
        "stream": record.stream,
        "queue_seconds": None if record.on_lane is None else round(record.on_lane - record.arrived, 6),
        "first_token_seconds": None if record.first is None else round(record.first - record.arrived, 6),
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "accepted_tokens": sum(each.accepted for each in record.stats),
    }
