"""Requests of the server's tests, and readers of its answers."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.support.serve.fakes import toy_answer
from tests.support.serve.serving import Served

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
TEXT = "user:Hello;"
LONG = next(text for text in map(str, range(1000)) if len(toy_answer(text.encode())) > 60)


def text_of(tokens: list[int]) -> str:
    """The text of a toy answer."""
    return "".join(chr(token) for token in tokens if token)


def events(body: str) -> list[dict[str, Any]]:
    """The JSON events of a complete stream."""
    lines = [line for line in body.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def post(served: Served, **more: Any) -> httpx.Response:
    """Ask for a completion of LONG. ``more``: further fields of the body."""
    with httpx.Client(base_url=served.url, timeout=20) as http:
        return http.post("/v1/completions", json={"prompt": LONG, "max_tokens": 1000, "temperature": 0, **more})
