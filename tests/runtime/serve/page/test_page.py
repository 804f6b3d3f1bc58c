"""The page's files, its stream of events, and the rounds of an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime import Decoder
from runtime.serve.page.access import may_watch
from runtime.serve.page.routes import STATIC
from tests.support.serve.client import events
from tests.support.serve.serving import Served, serving, until

PROMPT = "the cat sat on the mat, the cat sat on"


@pytest.fixture(scope="module")
def real(echo_engine: Path) -> Iterator[Served]:
    with Decoder(echo_engine, threads=1, lanes=2) as decoder, serving([decoder]) as served:
        yield served


def body(**more: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "max_tokens": 40, "temperature": 0, **more}


def test_the_page_comes_with_a_strict_policy(served: Served) -> None:
    for path in ("/", "/ui", "/ui/"):
        page = served.http.get(path, follow_redirects=True)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "<title>resps" in page.text
    for file in STATIC.iterdir():
        headers = served.http.get(f"/ui/{file.name}").headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert re.search("javascript", served.http.get("/ui/main.js").headers["content-type"])
    for path in ("/ui/../app.py", "/ui/%2e%2e/routes.py", "/ui/none"):
        assert served.http.get(path).json()["error"]["code"] == "no_such_route"


def test_files_name_no_foreign_host_and_no_inline_code() -> None:
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= 300
        assert set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text)) <= {"http://www.w3.org/2000/svg"}, file
        assert not re.search(r"style=|\son\w+=|<script>|innerHTML|\beval\(", text), file


def scope(address: str, **headers: str) -> dict[str, Any]:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "client": (address, 1), "headers": named}


@pytest.mark.parametrize(
    ("address", "host", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1:8000", True),
        ("127.0.0.1", "localhost:8000", True),
        ("127.9.9.9", "localhost", True),
        ("::1", "[::1]:8000", True),
        ("::ffff:127.0.0.1", "127.0.0.1:80", True),
        ("10.0.0.2", "127.0.0.1:8000", False),
        ("::ffff:10.0.0.2", "localhost", False),
        ("127.0.0.1", "evil.example:8000", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example:8000", False),
        ("127.0.0.1", "", False),
        ("", "localhost", False),
    ],
)
def test_only_this_machine_may_watch(address: str, host: str, allowed: bool) -> None:
    assert may_watch(scope(address, host=host)) is allowed
    assert not may_watch(scope(address, host=host, x_forwarded_for="10.0.0.9"))


def test_others_are_told_so(served: Served) -> None:
    refused = served.http.get("/events", headers={"host": "evil.example"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_this_machine")


def test_rounds_come_on_request(real: Served) -> None:
    whole = real.http.post("/v1/completions", json=body(rounds=True)).json()
    streamed = events(real.http.post("/v1/completions", json=body(rounds=True, stream=True)).text)
    assert whole["choices"][0]["text"] == "".join(each["choices"][0]["text"] for each in streamed)
    rounds = [each["resps"]["round"] for each in streamed if "round" in each.get("resps", {})]
    for found, stats in ((rounds, streamed[-1]["resps"]["stats"]), (whole["resps"]["rounds"], whole["resps"]["stats"])):
        tokens = [token for each in found for token in each["tokens"]]
        assert "".join(token["text"] for token in tokens) == whole["choices"][0]["text"]
        assert len(tokens) == whole["usage"]["completion_tokens"]
        accepted = [token for token in tokens if token["depth"]]
        assert len(accepted) == stats["accepted"] > 0
        assert {token["from"] for token in accepted} <= {"draft", "lookup"}
        trees = [each for each in found if "tree" in each]
        assert sum(len(each["tree"]["parents"]) - 1 for each in trees) == stats["drafted"]
        assert all(min(each["ms"].values()) >= 0 and each["path"][0] == 0 for each in trees)
    plain = real.http.post("/v1/completions", json=body()).json()
    assert "rounds" not in plain["resps"]
    assert plain["choices"][0]["text"] == whole["choices"][0]["text"]
    refused = real.http.post("/v1/completions", json=body(rounds=1))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "rounds")


def numbers(heard: list[dict[str, Any]]) -> set[int]:
    return {each["request"] for message in heard for cycle in message["cycles"] for each in cycle["rounds"]}


def messages(served: Served, user: str, requests: int) -> tuple[list[dict[str, Any]], list[int]]:
    """What a watcher hears while others send requests, and how many tokens these got."""

    def ask(at: int) -> int:
        answer = httpx.post(f"{served.url}/v1/completions", json=body(prompt=f"{PROMPT} {at}", user=["me", "you"][at % 2]), timeout=60)
        tokens: int = answer.json()["usage"]["completion_tokens"]
        return tokens

    heard: list[dict[str, Any]] = []
    with ThreadPoolExecutor(2) as others, served.http.stream("GET", "/events", params={"user": user}) as stream:
        lines = (line for line in stream.iter_lines() if line)
        heard.append(json.loads(next(lines).removeprefix("data: ")))
        counts = list(others.map(ask, range(requests)))
        while len(numbers(heard)) < requests or heard[-1]["state"]["replicas"][0]["running"]:
            heard.append(json.loads(next(lines).removeprefix("data: ")))
            assert len(heard) < 1000
    return heard, counts


def test_a_watcher_hears_of_all_requests_without_their_text(real: Served) -> None:
    heard, counts = messages(real, "me", 4)
    cycles = [cycle for message in heard for cycle in message["cycles"]]
    rounds = [each for cycle in cycles for each in cycle["rounds"]]
    assert len(numbers(heard)) == len(counts)
    # a last round may give more tokens than the answer has
    assert sum(counts) - len(counts) <= sum(each["tokens"] for each in rounds)
    assert sum(cycle["read"] for cycle in cycles) > 0
    assert sum(cycle["rows"] for cycle in cycles) == sum(each["nodes"] for each in rounds)
    names = set(re.findall(r'"(\w+)"', json.dumps(heard)))
    assert names <= {*NAMES, "draft", "lookup", "forced"}
    running = [each for message in heard for each in message["state"]["replicas"][0]["running"]]
    assert {each["own"] for each in running} <= {True, False}
    decoder: Any = real.services.decoder
    until(lambda: decoder._totals_recorder.listener is None)


NAMES = (
    *("state", "cycles", "replicas", "waiting", "dropped", "lanes", "healthy", "running", "request", "own", "prompt", "tokens", "replica"),
    *("at", "rows", "read", "ms", "verify", "commit", "rounds", "nodes", "accepted", "asked", "source"),
)


def test_a_stopping_server_ends_the_stream(echo_engine: Path) -> None:
    with Decoder(echo_engine, threads=1) as decoder, serving([decoder]) as served, served.http.stream("GET", "/events") as stream:
        lines = stream.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["cycles"] == []
        served.server.loop.call_soon_threadsafe(served.server.begin_shutdown)
        assert [line for line in lines if line] == []
