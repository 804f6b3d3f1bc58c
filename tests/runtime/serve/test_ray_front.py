"""What the front of the Ray Serve application does when a replica ends, with stand-ins for replicas."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Callable, MutableMapping
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.routing import Route

from runtime.serve.app import HANDLERS
from runtime.serve.ray.pages import merged
from runtime.serve.settings import ServerSettings

with warnings.catch_warnings(action="ignore"):  # Ray's own
    from ray.exceptions import ActorDiedError
    from ray.serve.exceptions import BackPressureError

    from runtime.serve.ray.engine import Asked
    from runtime.serve.ray.front import PassOn, prompt_of

pytestmark = pytest.mark.ray
Batch = list[dict[str, Any]]
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}
WHOLE: Batch = [{**START, "headers": [(b"content-type", b"application/json")]}, {"type": "http.response.body", "body": b"{}"}]
EVENT = {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}


class Replica:
    """The answer of a replica that says ``batches`` and then ends, or raises ``error``. ``hangs``: it never takes the request."""

    def __init__(self, *batches: Batch, error: Exception | None = None, hangs: bool = False) -> None:
        self._batches, self._error, self._hangs, self.cancelled = iter(batches), error, hangs, False

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        if self._hangs:
            await asyncio.Event().wait()
        for batch in self._batches:
            return batch
        raise self._error or StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled = True


def dying(*batches: Batch) -> Replica:
    return Replica([], *batches, error=ActorDiedError())


def answered(*replicas: Replica, path: str = "/v1/completions", seconds: float = 30.0) -> tuple[httpx.Response, list[Asked]]:
    """The response when a request is given to ``replicas``, one after the other, and what they were asked."""
    asked: list[Asked] = []

    def ask(request: Asked) -> Replica:
        asked.append(request)
        return replicas[len(asked) - 1]

    app = Starlette(routes=[Route("/{path:path}", PassOn(ask, ServerSettings("toy", queue_seconds=seconds)))], exception_handlers=HANDLERS)
    app.state.reading_bytes = 0

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://front") as http:
            return await http.post(path, json={"prompt": "the cat"})

    return asyncio.run(post()), asked


def test_another_replica_gets_the_request_of_one_that_ends_before_its_answer() -> None:
    response, asked = answered(dying(), Replica([], WHOLE))
    assert (response.status_code, response.json()) == (200, {})
    assert [json.loads(each.body) for each in asked] == [{"prompt": "the cat"}] * 2
    assert (asked[0].prompt, asked[0].scope["path"]) == ('"the cat"', "/v1/completions")


@pytest.mark.parametrize(("path", "begin"), [("/v1/chat/completions", "data: {"), ("/v1/responses", "event: error\ndata: {")])
def test_a_stream_that_breaks_off_says_so(path: str, begin: str) -> None:
    response, asked = answered(dying([START], [EVENT]), path=path)
    assert len(asked) == 1
    first, last = response.text.removesuffix("\n\n").split("\n\n")
    assert first == "data: 1"
    assert last.startswith(begin)
    event = json.loads(last.rpartition("data: ")[2])
    assert event.get("error", event)["code"] == "replica_lost"
    assert "send the request again" in event.get("error", event)["message"]


@pytest.mark.parametrize("batches", [[WHOLE], [[START], [EVENT], [{**EVENT, "more_body": False}]]])
def test_a_replica_that_ends_behind_its_answer_is_not_spoken_of(batches: list[Batch]) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(dict(message))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    pass_on = PassOn(lambda _: dying(*batches), ServerSettings("toy"))
    app = SimpleNamespace(state=SimpleNamespace(reading_bytes=0))
    asyncio.run(pass_on({"type": "http", "method": "POST", "path": "/", "headers": [], "app": app}, receive, send))
    assert sent == [message for batch in batches for message in batch]


@pytest.mark.parametrize(
    ("replicas", "status", "code"),
    [
        (lambda: [dying(), dying()], 503, "replica_lost"),
        (lambda: [Replica(error=BackPressureError(7, 7))], 429, "queue_full"),
        (lambda: [Replica(hangs=True)], 503, "queue_timeout"),
    ],
)
def test_a_request_that_no_replica_answers_is_refused(replicas: Callable[[], list[Replica]], status: int, code: str) -> None:
    given = replicas()
    response, _ = answered(*given, seconds=0.05)
    assert (response.status_code, response.json()["error"]["code"], response.headers["Retry-After"]) == (status, code, "1")
    assert given[0].cancelled == (code == "queue_timeout")


def test_prompts_of_all_endpoints_keep_their_beginnings() -> None:
    chats = [json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode() for text in ("one two", "one three")]
    assert [prompt_of(each)[:35] for each in chats] == ['[{"role": "user", "content": "one t'] * 2
    assert prompt_of(b'{"input": "hello"}') == '"hello"'
    assert [prompt_of(each) for each in (b"{", b"[]", b'"x"', b"{}", b"\xff")] == [""] * 5


def test_pages_of_several_processes_are_one() -> None:
    page = '# HELP a_total Help.\n# TYPE a_total counter\na_total{x="1"} 3.0\n'
    (family,) = text_string_to_metric_families(merged({"7": page, "8": page}).decode())
    assert [(each.labels, each.value) for each in family.samples] == [({"x": "1", "process": process}, 3.0) for process in ("7", "8")]
