"""The server over toy Decoders in trouble: a full queue, clients that leave, engines that fail, shutdown."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from runtime import EngineDirError
from runtime.serve.app import make_app
from runtime.serve.protection.settings import ConnectionLimits
from runtime.serve.server import Server
from runtime.serve.settings import ServerSettings
from runtime.serve.sockets import bind
from tests.support.serve.client import LONG, post, text_of
from tests.support.serve.fakes import ToyDecoder, engine_failure, toy_answer
from tests.support.serve.serving import Served, serving, until


def test_the_queue_is_bounded_and_admitted_requests_are_served(toy: ToyDecoder) -> None:
    with serving([toy], queue=2) as served, ThreadPoolExecutor(8) as clients:
        with toy.paused():
            admitted = [clients.submit(post, served) for _ in range(3)]
            served.wait("resps:num_requests_waiting", 2)
            refused = post(served)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "queue_full"
            assert int(refused.headers["retry-after"]) >= 1
            assert served.metric("resps:num_requests_running") == 1
        texts = {each.result().json()["choices"][0]["text"] for each in admitted}
        assert texts == {text_of(toy_answer(LONG.encode()))}
        served.wait('resps:requests_total{outcome="eos"}', 3)
        assert served.metric('resps:requests_total{outcome="queue_full"}') == 1
        served.wait("resps:num_requests_running", 0)
        assert served.metric("resps:num_requests_waiting") == 0


def test_waiting_in_the_queue_is_limited(toy: ToyDecoder) -> None:
    with serving([toy], queue_seconds=0.05) as served, ThreadPoolExecutor(1) as clients:
        with toy.paused():
            first = clients.submit(post, served)
            served.wait("resps:num_requests_running", 1)
            refused = post(served)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_timeout")
        assert first.result().status_code == 200


def test_a_request_has_a_time_limit(toy: ToyDecoder) -> None:
    toy.seconds = 0.1
    with serving([toy], request_seconds=1.0) as served, ThreadPoolExecutor(1) as clients:
        cut = post(served).json()
        assert cut["choices"][0]["finish_reason"] == "length"
        assert cut["resps"]["stop"] == "deadline"
        assert text_of(toy_answer(LONG.encode())).startswith(cut["choices"][0]["text"])
        with toy.paused():
            runs = clients.submit(post, served)
            served.wait("resps:num_requests_running", 1)
            end = time.monotonic() + 1.0
            until(lambda: time.monotonic() > end)
        late = runs.result()
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline")


@contextmanager
def unread(served: Served, **more: Any) -> Iterator[socket.socket]:
    """A client that does not read its answer. ``more``: further fields of the body."""
    body = json.dumps({"prompt": LONG, "max_tokens": 1000, **more}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # otherwise the kernel buffers megabytes
        client.connect(("127.0.0.1", int(served.url.rpartition(":")[2])))
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        yield client


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_ends_the_answer_after_the_round(served: Served, toy: ToyDecoder, stream: bool) -> None:
    with toy.paused():
        with unread(served, stream=stream):
            served.wait("resps:num_requests_running", 1)
        served.wait('resps:requests_total{outcome="disconnected"}', 1)
    until(lambda: toy.ended == ["cancelled"])
    assert toy.rounds <= 1  # of about thirty
    assert post(served).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_ends_all_answers_of_a_request(stream: bool) -> None:
    toy = ToyDecoder(lanes=2)
    with serving([toy], queue=3) as served:
        with toy.paused():
            with unread(served, stream=stream, n=4):
                served.wait("resps:num_requests_running", 2)
                served.wait("resps:num_requests_waiting", 2)
                assert post(served, n=2).status_code == 429  # each answer counts
            served.wait('resps:requests_total{outcome="disconnected"}', 1)
            served.wait("resps:num_requests_waiting", 0)
        until(lambda: toy.ended == ["cancelled"] * 2)
        until(lambda: served.services.pool._admitted == 0)
        answers = post(served, n=5, seed=1)
        assert [choice["text"] for choice in answers.json()["choices"]] == [text_of(toy_answer(LONG.encode(), 1 + at)) for at in range(5)]
        toy.failing = engine_failure()
        assert post(served, n=3).status_code == 500
        until(lambda: served.services.pool._admitted == 0)


def test_a_disconnect_in_the_queue_is_never_decoded(served: Served, toy: ToyDecoder) -> None:
    with unread(served, stream=True):
        with toy.paused():
            served.wait("resps:num_requests_running", 1)
            with unread(served, stream=True):
                served.wait("resps:num_requests_waiting", 1)
            served.wait("resps:num_requests_waiting", 0)
            served.wait('resps:requests_total{outcome="disconnected"}', 1)
        until(lambda: len(toy.ended) == 1)
        served.wait('resps:requests_total{outcome="eos"}', 1)
        assert len(toy.asked) == 1


def test_a_slow_reader_blocks_no_replica_and_is_disconnected(toy: ToyDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    filler = "x" * 300_000
    monkeypatch.setattr("runtime.serve.openai.responses.extension", lambda *_: {"filler": filler})
    monkeypatch.setattr(
        "runtime.serve.openai.responses.ResponseFormat._logprobs", lambda *_: {"filler": filler}
    )  # fills the socket buffers
    limits = ConnectionLimits(close_seconds=0.2)
    with serving([toy], limits=limits, write_seconds=0.3, queue=1) as served, unread(served, stream=True) as client:
        until(lambda: toy.ended == ["eos"])  # decoded to the end although nobody reads
        until(lambda: served.services.pool.running == 0)
        served.wait('resps:requests_total{outcome="slow_reader"}', 1)
        until(lambda: served.services.pool._admitted == 0)
        own = client.getsockname()
        until(lambda: own not in [each.client for each in served.server.server_state.connections])  # though it still holds its socket


def test_an_engine_failure_is_reported_and_the_replica_is_used_again(served: Served, toy: ToyDecoder) -> None:
    toy.failing = engine_failure()
    failed = post(served)
    error = failed.json()["error"]
    assert (failed.status_code, error["code"], error["type"]) == (500, "engine_failure", "server_error")
    assert "verify" in error["message"]
    assert "Traceback" not in failed.text
    toy.failing = None
    assert post(served).status_code == 200
    assert served.http.get("/healthz").status_code == 200
    served.wait('resps:requests_total{outcome="error"}', 1)


def test_a_failure_in_the_middle_of_a_stream_is_an_event(served: Served, toy: ToyDecoder) -> None:
    toy.seconds = 0.02
    body = {"prompt": LONG, "max_tokens": 99, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=20) as stream:
        lines = (line.removeprefix("data: ") for line in stream.iter_lines() if line)
        received = [next(lines)]
        toy.failing = engine_failure()
        received += lines
    assert json.loads(received[-1])["error"]["code"] == "engine_failure"
    assert "[DONE]" not in received
    assert stream.status_code == 200


def test_an_unexpected_exception_is_one_line_to_the_client(served: Served, toy: ToyDecoder) -> None:
    toy.failing = RuntimeError("secret\nlines")
    failed = post(served)
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in failed.text
    assert "\n" not in failed.json()["error"]["message"]


def test_a_damaged_policy_is_the_server_s_fault(served: Served, toy: ToyDecoder) -> None:
    toy.failing = EngineDirError("the network's file was changed — tune again")
    failed = post(served)
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "failed")


def test_a_replica_is_given_up_after_repeated_failures(toy: ToyDecoder) -> None:
    other = ToyDecoder()
    with serving([toy, other], failures=2) as served, ThreadPoolExecutor(1) as clients:
        toy.failing = engine_failure()
        assert post(served).status_code == 500
        served.wait("resps:num_requests_running", 0)
        with other.paused():
            busy = clients.submit(post, served)  # goes to the replica that was free for longer: the other one
            served.wait("resps:num_requests_running", 1)
            assert post(served, seed=1).status_code == 500
            until(lambda: not served.services.pool.replicas[0].healthy)
            health = served.http.get("/healthz")
            assert (health.status_code, health.json()["replicas"]) == (503, [False, True])
            assert served.metric('resps:replica_healthy{replica="0"}') == 0
        assert busy.result().status_code == 200
        assert [post(served).status_code for _ in range(4)] == [200] * 4  # by the other replica
        other.failing = engine_failure()
        assert [post(served, seed=seed).status_code for seed in range(3)] == [500, 500, 503]


def test_replicas_run_at_the_same_time_and_keep_their_prefixes(toy: ToyDecoder) -> None:
    other = ToyDecoder()
    with serving([toy, other]) as served, ThreadPoolExecutor(2) as clients:
        with toy.paused(), other.paused():
            both = [clients.submit(post, served, prompt=prompt) for prompt in ("apple", "berry")]
            served.wait("resps:num_requests_running", 2)
        assert all(each.result().status_code == 200 for each in both)
        served.wait("resps:num_requests_running", 0)
        by_prompt = {bytes(each.asked[0]["prompt"]): each for each in (toy, other)}
        for prompt in (b"apple", b"berry", b"berry", b"apple"):
            post(served, prompt=f"{prompt.decode()} and so on")
            assert bytes(by_prompt[prompt].asked[-1]["prompt"]).startswith(prompt)
            served.wait("resps:num_requests_running", 0)


def test_draining_finishes_running_requests_and_refuses_the_rest(toy: ToyDecoder) -> None:
    with serving([toy]) as served, ThreadPoolExecutor(3) as clients:
        with toy.paused():
            runs = clients.submit(post, served)
            served.wait("resps:num_requests_running", 1)
            waits = clients.submit(post, served)
            served.wait("resps:num_requests_waiting", 1)
            served.server.loop.call_soon_threadsafe(served.server.begin_shutdown)
            refused = waits.result()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert runs.result().json()["choices"][0]["finish_reason"] == "stop"
    assert toy.closed


def test_a_signal_during_start_up_ends_the_server(toy: ToyDecoder) -> None:
    def load() -> list[Any]:
        server.loop.call_soon_threadsafe(server.begin_shutdown)
        time.sleep(0.1)
        return [toy]

    with bind("127.0.0.1", 0) as listener:
        server = Server(make_app(ServerSettings("toy"), load), 5.0, "toy")
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
    assert toy.closed


@pytest.mark.parametrize("stream", [False, True])
def test_requests_that_outlast_the_drain_are_cut_off_with_an_error(toy: ToyDecoder, stream: bool) -> None:
    toy.seconds = 0.05
    with serving([toy], drain_seconds=0.2) as served, ThreadPoolExecutor(1) as clients:
        runs = clients.submit(post, served, stream=stream)
        until(lambda: toy.rounds >= 1)
        served.server.loop.call_soon_threadsafe(served.server.begin_shutdown)
        cut = runs.result()
    assert cut.status_code == (200 if stream else 503)
    error = json.loads(cut.text.split("\n\n")[-2].removeprefix("data: ") if stream else cut.text)["error"]
    assert error["code"] == "shutting_down"
    assert toy.ended == ["cancelled"]


def test_an_answer_that_waits_for_its_siblings_does_not_end_the_request() -> None:
    """More answers than lanes, each of which takes longer than a request may wait for a lane."""
    toy = ToyDecoder()
    toy.seconds = 0.02
    with serving([toy], queue_seconds=0.1) as served:
        answers = post(served, n=3, seed=1, max_tokens=16)
        assert answers.status_code == 200
        assert [choice["text"] for choice in answers.json()["choices"]] == [
            text_of(toy_answer(LONG.encode(), 1 + at)[:16]) for at in range(3)
        ]
