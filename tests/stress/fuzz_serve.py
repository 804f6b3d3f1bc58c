"""Sends hostile requests to the server's application over a toy decoder.

    python -m tests.stress.fuzz_serve --cases 50000

Every request must get a response in OpenAI's format without an internal error, or none if its client disconnected. An answer must be the
toy's. After each request the pool must be idle. Prints one JSON object; fails with the smallest request that breaks one of these rules.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.serve.app import make_app
from runtime.serve.openai.neutral import HARMLESS, NEUTRAL
from runtime.serve.openai.requests import ChatBody, CompletionBody
from runtime.serve.settings import ServerSettings
from tests.support.serve.fakes import ToyDecoder, toy_answer

CASE_SECONDS = 20  # limit for one request
REFUSALS = {400, 404, 405, 413}
LARGEST = 4096


@dataclass(frozen=True)
class RawRequest:
    """A request whose body arrives in pieces; ``leaves``: the client disconnects after them."""

    method: str
    path: str
    pieces: tuple[bytes, ...]
    leaves: bool


numbers = st.one_of(st.integers(), st.integers(-3, 3), st.floats(), st.sampled_from([2**31, 2**63, 2**64, 10**400, -0.0, 1e308]))
texts = st.one_of(st.text(max_size=40), st.sampled_from(["", "a", "user", "system", "text", "<|im_end|>", "\x00", "\ufffd", "x" * 300]))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
roles = st.sampled_from(["system", "developer", "user", "assistant"])
contents = st.one_of(texts, st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=3))
messages = st.lists(st.fixed_dictionaries({"role": roles, "content": contents}), min_size=1, max_size=5)
good = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(-1, 50),
    "seed": st.integers(-(2**63), 2**64 - 1),
    "max_tokens": st.integers(1, 10**9),
    "stop": st.one_of(st.text(min_size=1, max_size=3), st.lists(st.text("abcdexyz", min_size=1, max_size=2), max_size=4)),
    "stream": st.booleans(),
    "policy": st.sampled_from(["none", "fixed"]),
    "speculation": st.just(True),
    "model": st.just("toy"),
    "n": st.just(1),
    "presence_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.1, 100),
    "logit_bias": st.dictionaries(st.integers(0, 255).map(str), st.floats(-100, 100), max_size=3),
    "min_p": st.floats(0, 1),
    "stop_token_ids": st.lists(st.integers(0, 255), max_size=3),
    "bad_words": st.lists(st.text("abc", min_size=1), max_size=3),
    "rounds": st.booleans(),
    "user": texts,
    "priority": st.integers(-1000, 1000),
}
FIELDS = {*ChatBody.model_fields, *CompletionBody.model_fields} - {"deadline"}  # which would cut an answer by the clock
names = st.sampled_from(sorted({*FIELDS, *NEUTRAL["body"], *HARMLESS["body"], "extra"}))


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bool, bytes]:
    """Whether it is a chat request, and the body: valid, valid but for a few fields or bytes, any JSON, or any bytes."""
    chat = draw(st.booleans())
    kind = draw(st.sampled_from(["good", "good", "bad fields", "bad fields", "bad bytes", "json", "bytes"]))
    if kind == "bytes":
        return chat, draw(
            st.one_of(st.binary(max_size=200), st.just(b"x" * (LARGEST + 1)), st.just(b"[" * LARGEST), st.just(b'{"a":' * 700))
        )
    if kind == "json":
        return chat, dumped(draw(values))
    prompts = st.one_of(texts, st.lists(st.integers(0, 255), min_size=1, max_size=20))
    body = {"messages": draw(messages)} if chat else {"prompt": draw(prompts)}
    body |= draw(st.fixed_dictionaries({}, optional=good))
    if kind == "bad fields":
        body |= draw(st.dictionaries(names, values, min_size=1, max_size=3))
    data = dumped(body)
    if kind == "bad bytes":
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=4)) + data[at + draw(st.integers(0, 4)) :]
    return chat, data


def dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


@st.composite
def cases(draw: st.DrawFn) -> RawRequest:
    chat, body = draw(bodies())
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=3)))
    pieces = tuple(body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True))
    usual = ("POST", "/v1/chat/completions" if chat else "/v1/completions")
    other = st.tuples(st.sampled_from(["GET", "POST", "PUT", "HEAD"]), st.sampled_from(["/", "/v1", "/v1/models/é", "/metrics", usual[1]]))
    method, path = draw(st.one_of(st.just(usual), st.just(usual), st.just(usual), other))
    return RawRequest(method, path, pieces, draw(st.sampled_from([False, False, False, True])))


async def asked(app: Any, case: RawRequest) -> tuple[int | None, bytes]:
    """Status and body of the response; the status is None if the client disconnected before."""
    coming = [{"type": "http.request", "body": piece, "more_body": True} for piece in case.pieces]
    coming.append({"type": "http.disconnect"} if case.leaves else {"type": "http.request", "body": b"", "more_body": False})
    status: list[int] = []
    body = bytearray()

    async def receive() -> dict[str, Any]:
        if not coming:
            await asyncio.Event().wait()
        return coming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            status.append(message["status"])
        else:
            body.extend(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": case.method,
        "path": case.path,
        "raw_path": case.path.encode(),
        "scheme": "http",
        "query_string": b"",
        "root_path": "",
        "headers": [],
    }
    await asyncio.wait_for(app(scope, receive, send), CASE_SECONDS)
    assert len(status) <= 1
    return (status[0] if status else None), bytes(body)


def judge(case: RawRequest, status: int | None, body: bytes) -> str:
    """The kind of outcome. Raises AssertionError if a rule was broken."""
    if status is None:
        assert case.leaves, "no answer"
        return "left"
    if status == 307 and case.path == "/":
        return "the page"
    if status != 200:
        assert status in REFUSALS, (status, body)
        if case.leaves and not body:
            return "left"
        if case.method == "HEAD":
            return str(status)
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["message"]
        assert len(error["message"].splitlines()) == 1
        assert "Traceback" not in error["message"]
        return str(status)
    if case.method == "POST":
        assert_answer(case, body)
        return "answered"
    return "other"


def assert_answer(case: RawRequest, body: bytes) -> None:
    """The text must be the toy's answer to this prompt and seed."""
    request = json.loads(b"".join(case.pieces))
    chat = "chat" in case.path
    prompt = ToyDecoder().encode(as_decoded(request["messages"]) if chat else unwrapped(request["prompt"]))
    limit = (request.get("max_completion_tokens") or request.get("max_tokens")) if chat else request.get("max_tokens") or 16
    tokens = toy_answer(prompt, (request.get("seed") or 0) % 2**64)[:limit]
    full = "".join(chr(token) for token in tokens if token)
    if request.get("stream"):
        events = body.split(b"\n\n")
        assert events[-2:] == [b"data: [DONE]", b""], body
        choices = [choice for event in events[:-2] for choice in json.loads(event.removeprefix(b"data: "))["choices"]]
        text = "".join((choice["delta"].get("content", "") if chat else choice["text"]) for choice in choices)
    else:
        (choice,) = json.loads(body)["choices"]
        text = choice["message"]["content"] if chat else choice["text"]
    stops = [request["stop"]] if isinstance(request.get("stop"), str) else request.get("stop") or []
    ends = [full.find(stop) for stop in stops if stop in full]
    assert text == full[: min(ends)] if ends else text == full, (text, full)


def as_decoded(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
    joined = [
        each["content"] if isinstance(each["content"], str) else "".join(part["text"] for part in each["content"]) for each in messages
    ]
    roles = ["system" if each["role"] == "developer" else each["role"] for each in messages]
    return [{"role": role, "content": content} for role, content in zip(roles, joined, strict=True)]


def unwrapped(prompt: Any) -> Any:
    return prompt[0] if isinstance(prompt, list) and not isinstance(prompt[0], int) else prompt


@contextmanager
def application(decoder: ToyDecoder) -> Iterator[tuple[asyncio.Runner, Any]]:
    """The started application over ``decoder``, and the event loop it runs in."""
    app = make_app(ServerSettings("toy", body_bytes=LARGEST), lambda: [decoder])  # type: ignore[list-item]
    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        try:
            yield runner, app
        finally:
            runner.run(lifespan.__aexit__(None, None, None))


def fuzz(count: int) -> Counter[str]:
    """Outcomes of ``count`` requests. Raises AssertionError for the smallest request that breaks a rule."""
    came: Counter[str] = Counter()

    with application(ToyDecoder()) as (runner, app):

        async def one(case: RawRequest) -> None:
            came[judge(case, *await asked(app, case))] += 1
            pool = app.state.services.pool
            end = time.monotonic() + CASE_SECONDS
            while pool.running:
                assert time.monotonic() < end, "a replica stays busy"
                await asyncio.sleep(0)
            assert (pool._admitted, pool.waiting.total(), len(pool._free)) == (0, 0, 1)

        @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(cases())
        def run(case: RawRequest) -> None:
            runner.run(one(case))

        run()
    return came


@click.command()
@click.option("--cases", "count", type=click.IntRange(min=1), default=1000, show_default=True)
def main(count: int) -> None:
    """Fuzz the server's application."""
    started = time.monotonic()
    came = fuzz(count)
    click.echo(json.dumps({"cases": came.total(), "seconds": round(time.monotonic() - started, 1), **dict(sorted(came.items()))}))


if __name__ == "__main__":
    main()
