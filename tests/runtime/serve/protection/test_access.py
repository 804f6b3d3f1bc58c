"""Who may ask: keys, pages of a browser, names of the server, encodings; and what each key may use."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from typing import Any

import httpx
import openai
import pytest

from runtime.serve.protection.keys import Key, Keys
from runtime.serve.protection.settings import Protection
from tests.support.serve.client import CHAT, LONG
from tests.support.serve.fakes import ToyDecoder, engine_failure
from tests.support.serve.serving import Served, serving, until


def key(name: str, **limits: Any) -> Key:
    return Key(name, sha256(f"{name}-key".encode()).digest(), **limits)


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Served, ToyDecoder]]:
    """A server with keys, that may be asked by one foreign page."""
    toy = ToyDecoder(lanes=3)
    keys = Keys(
        (key("alice"), key("root", admin=True), key("few", requests_per_minute=1), key("narrow", lanes=1, tokens_per_minute=10_000))
    )
    with serving([toy], protection=Protection(keys, ("https://chat.example",), ("service.local",))) as served:
        yield served, toy


def ask(served: Served, name: str | None = "alice", **headers: str) -> httpx.Response:
    if name is not None:
        headers["Authorization"] = f"Bearer {name}-key"
    return served.http.post("/v1/chat/completions", json=CHAT, headers=headers)


def code(response: httpx.Response) -> tuple[int, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"]


def test_only_a_key_reaches_an_engine(guarded: tuple[Served, ToyDecoder]) -> None:
    served, toy = guarded
    before = len(toy.asked)
    for wrong in (None, "mallory", "alice-key, bob", ""):
        response = ask(served, wrong)
        assert code(response) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/metrics", "/version", "/v1/models", "/nothing", "/healthz/", "/events", "/uix"):
        assert code(served.http.get(path)) == (401, "invalid_api_key")
    assert served.http.post("/admin/reload").status_code == 401
    assert served.http.get("/ui/").status_code == 200  # the page asks for a key itself
    assert len(toy.asked) == before
    assert ask(served).status_code == 200
    assert len(toy.asked) == before + 1
    for path in ("/healthz", "/readyz"):
        assert served.http.get(path).status_code == 200
    with (
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="mallory-key", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="alice-key", max_retries=0) as client:
        assert client.models.list().data[0].id == "toy"
    page = served.http.get("/metrics", headers={"Authorization": "Bearer alice-key"}).text
    assert 'resps:requests_total{outcome="unauthorized"}' in page


def test_a_refusal_does_not_wait_for_the_body(guarded: tuple[Served, ToyDecoder]) -> None:
    def endless() -> Iterator[bytes]:
        yield b"{"
        until(lambda: refused, 15)
        yield b"}"

    served, refused = guarded[0], list[int]()

    with ThreadPoolExecutor(1) as threads:
        sent = threads.submit(lambda: served.http.post("/v1/completions", content=endless(), headers={"Authorization": "Bearer no"}))
        until(lambda: 'outcome="unauthorized"' in _metrics(served))
        refused.append(1)
        assert sent.result().status_code == 401


def test_requests_behind_one_without_a_key_are_dropped(guarded: tuple[Served, ToyDecoder]) -> None:
    served, toy = guarded
    before = len(toy.asked)
    one = b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\n\r\n{"prompt":""}'
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=10) as client:
        client.sendall(one * 20)
        came = b""
        with suppress(ConnectionResetError):
            while piece := client.recv(65536):
                came += piece
    assert came.count(b"HTTP/1.1 401") == 1
    assert len(toy.asked) == before


def _metrics(served: Served) -> str:
    return served.http.get("/metrics", headers={"Authorization": "Bearer alice-key"}).text


def test_only_an_admin_may_reload(guarded: tuple[Served, ToyDecoder]) -> None:
    served, _ = guarded
    assert code(served.http.post("/admin/reload", headers={"Authorization": "Bearer alice-key"})) == (403, "not_an_admin")


def test_pages_of_other_origins_are_refused_unless_named(guarded: tuple[Served, ToyDecoder]) -> None:
    served, toy = guarded
    before = len(toy.asked)
    assert code(ask(served, Origin="https://evil.example")) == (403, "origin_not_allowed")
    assert code(ask(served, Origin="null")) == (403, "origin_not_allowed")
    assert len(toy.asked) == before
    assert ask(served, Origin=served.url).status_code == 200  # a page of this server
    allowed = ask(served, Origin="https://chat.example")
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://chat.example")
    unkeyed = ask(served, None, Origin="https://chat.example")
    assert (unkeyed.status_code, unkeyed.headers["access-control-allow-origin"]) == (401, "https://chat.example")
    preflight = {
        "Origin": "https://chat.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    answer = served.http.options("/v1/chat/completions", headers=preflight)
    assert (answer.status_code, "authorization" in answer.headers["access-control-allow-headers"].lower()) == (200, True)
    assert served.http.options("/v1/models", headers={**preflight, "Origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:8000", 200), ("127.0.0.1", 200), ("127.1.2.3:80", 200), ("[::1]:8000", 200),
        ("[::ffff:127.0.0.1]", 200),
        ("app.localhost", 200), ("SERVICE.local:1", 200), ("evil.example", 403), ("localhost.evil.example", 403), ("10.0.0.1", 403),
        ("[", 403),
        ("evil.example:80@localhost", 403), ("localhost@evil.example", 403),
    ],
)  # fmt: skip
def test_foreign_names_are_refused_on_loopback(guarded: tuple[Served, ToyDecoder], host: str, status: int) -> None:
    assert ask(guarded[0], Host=host).status_code == status


def test_compressed_bodies_are_refused_as_such(guarded: tuple[Served, ToyDecoder]) -> None:
    response = ask(guarded[0], **{"Content-Encoding": "gzip"})
    assert code(response) == (415, "unsupported_content_encoding")
    assert "gzip" in response.json()["error"]["message"]
    assert ask(guarded[0], **{"Content-Encoding": "identity"}).status_code == 200


def test_a_key_has_its_own_number_of_requests(guarded: tuple[Served, ToyDecoder]) -> None:
    served, _ = guarded
    assert ask(served, "few").status_code == 200
    again = ask(served, "few")
    assert code(again) == (429, "rate_limit_exceeded")
    assert 1 <= int(again.headers["retry-after"]) <= 60
    assert ask(served).status_code == 200


def test_a_key_has_its_own_number_of_lanes(guarded: tuple[Served, ToyDecoder]) -> None:
    served, toy = guarded
    with ThreadPoolExecutor(4) as clients:
        with toy.paused():
            asked = [clients.submit(ask, served, "narrow") for _ in range(3)]
            until(lambda: (served.services.pool.running, served.services.pool.waiting.total()) == (1, 2))
            other = clients.submit(ask, served)
            until(lambda: served.services.pool.running == 2)  # the free lanes go to others
            assert served.services.pool.waiting.total() == 2
        assert [each.result().status_code for each in (*asked, other)] == [200] * 4
    used = served.services.limits._tokens["narrow"]
    assert 9000 < used.left < 10_000  # prompts and answers of three requests


def test_requests_that_an_engine_failed_at_are_not_tried_for_ever(guarded: tuple[Served, ToyDecoder]) -> None:
    served, toy = guarded
    toy.failing, toy.failing_prompt = engine_failure(), LONG.encode()
    body = {"prompt": LONG, "max_tokens": 9}
    headers = {"Authorization": "Bearer alice-key"}
    try:
        came = [code(served.http.post("/v1/completions", json=body, headers=headers)) for _ in range(3)]
        assert came == [(500, "engine_failure"), (500, "engine_failure"), (400, "repeated_engine_failure")]
        assert ask(served).status_code == 200
    finally:
        toy.failing = None
    assert json.loads(served.http.get("/readyz").text)["ready"]
