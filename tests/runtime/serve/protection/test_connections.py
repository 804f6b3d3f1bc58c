"""Clients that are slow, broken or many, over real sockets. Times are short and only compared with much longer ones."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from runtime.serve.errors import ServeError
from runtime.serve.protection.settings import ConnectionLimits
from runtime.serve.server import Tls
from tests.support.serve.certificate import write_certificate
from tests.support.serve.client import CHAT, LONG, post
from tests.support.serve.fakes import ToyDecoder
from tests.support.serve.serving import Served, serving, until

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"


@contextmanager
def connected(served: Served, sent: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=10) as client:
        client.sendall(sent)
        yield client


def read_all(client: socket.socket) -> bytes:
    """Read to the end, which must come within the socket's time-out."""
    came = b""
    with suppress(ConnectionResetError):
        while piece := client.recv(65536):
            came += piece
    return came


@pytest.fixture(scope="module")
def impatient() -> Iterator[Served]:
    limits = ConnectionLimits(head_seconds=0.3, idle_seconds=0.3, close_seconds=0.3)
    with serving([ToyDecoder()], limits=limits, read_seconds=0.3, body_bytes=200_000, all_bodies_bytes=1) as served:
        yield served


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, HEAD + b"X: y\r\nContent-Length: 5\r\n"], ids=len)
def test_half_open_connections_and_slow_heads_are_closed(impatient: Served, sent: bytes) -> None:
    with connected(impatient, sent) as client:
        assert read_all(client) == b""


def test_a_byte_now_and_then_wins_no_time(impatient: Served) -> None:
    def trickle(client: socket.socket) -> None:
        for _ in range(200):
            client.sendall(b"X")
            time.sleep(0.05)

    with connected(impatient, HEAD) as client, pytest.raises(OSError):  # noqa: PT011  # reset or broken pipe
        trickle(client)


def test_slow_bodies_are_told_so(impatient: Served) -> None:
    with connected(impatient, HEAD + b"Content-Length: 100\r\n\r\n{") as client:
        answer = read_all(client)  # the connection is closed, although the rest of the body never comes
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_timeout"


def test_an_idle_connection_is_closed_after_keep_alive(impatient: Served) -> None:
    with connected(impatient, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") as client:
        assert read_all(client).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"), (HEAD + b"X: " + b"y" * 40_000, b"431"), (b"GET / HTTP/9\r\n\r\n", b"400")],
)
def test_what_is_no_request_is_answered_in_openai_s_form(impatient: Served, sent: bytes, status: bytes) -> None:
    with connected(impatient, sent) as client:
        head, _, body = read_all(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status)
        assert json.loads(body)["error"]["code"] == "invalid_http"


def test_bodies_that_are_read_together_are_limited(impatient: Served) -> None:
    part = HEAD + b"Content-Length: 199000\r\n\r\n" + b" " * 190_000
    with connected(impatient, part), connected(impatient, part):
        until(lambda: impatient.server._app.state.reading_bytes == 380_000)
        refused = post(impatient, prompt="x" * 100_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
    until(lambda: impatient.server._app.state.reading_bytes == 0)
    assert post(impatient).status_code == 200


def test_a_flood_of_idle_connections_keeps_nobody_out() -> None:
    toy = ToyDecoder()
    with serving([toy], limits=ConnectionLimits(most=8)) as served, ExitStack() as flood, ThreadPoolExecutor(1) as clients:
        with toy.paused():
            asked = clients.submit(post, served)
            until(lambda: served.services.pool.running == 1)
            idle = [flood.enter_context(connected(served, HEAD)) for _ in range(30)]
            until(lambda: len(served.server.server_state.connections) <= 8)
            assert read_all(idle[0]) == b""
            assert httpx.get(f"{served.url}/healthz").status_code == 200  # a new connection
            assert served.services.pool.running == 1  # a running answer is never closed for another connection
        assert asked.result().status_code == 200


def test_an_answer_that_nobody_reads_does_not_hold_its_connection(impatient: Served) -> None:
    with connected(impatient) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 300)
        until(lambda: len(impatient.server.server_state.connections) <= 1)  # the test's own client


def test_pipelined_requests_are_all_answered(impatient: Served) -> None:
    body = json.dumps({"prompt": "Hello", "max_tokens": 3}).encode()
    one = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with connected(impatient, one * 3) as client:
        came = b""
        while came.count(b"text_completion") < 3:
            came += client.recv(65536)
        assert came.count(b"HTTP/1.1 200") == 3


def test_tls(tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    with serving([ToyDecoder()], tls=Tls(certificate, None)) as served:
        trusting = ssl.create_default_context(cafile=certificate)
        url = served.url.replace("127.0.0.1", "localhost")
        with httpx.Client(base_url=url, verify=trusting) as http:
            assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(served.url.replace("https", "http"))
    with pytest.raises(ServeError, match="cannot use the certificate"):
        Tls(tmp_path / "none.pem", None)
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(ServeError, match="belong together"):
        Tls(certificate, tmp_path / "empty.pem")


def test_the_longest_answers_fit(impatient: Served) -> None:
    assert len(LONG) < 200
    assert post(impatient, stream=True).text.endswith("data: [DONE]\n\n")
