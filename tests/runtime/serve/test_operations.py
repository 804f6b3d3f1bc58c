"""resps-serve --check, sockets of every kind, and readiness."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime import EngineFailure
from runtime.serve.check import check
from runtime.serve.errors import CheckFailed, ServeError
from runtime.serve.sockets import bind, inherited, listeners, shown
from tests.runtime.serve.test_command import fail
from tests.support.serve.client import post
from tests.support.serve.fakes import ToyDecoder, engine_failure
from tests.support.serve.process import ROOT
from tests.support.serve.serving import serving, until


def test_check_answers_one_prompt_and_opens_no_port(tiny_engine: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [
            sys.executable,
            "-c",
            "from runtime.serve.cli import main; main()",
            "--engine-dir",
            str(tiny_engine),
            "--port",
            port,
            "--check",
        ]
        done = subprocess.run([*command, "--no-warmup"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, len(done.stdout) > 1, done.stderr) == (0, True, "")


def test_check_has_an_exit_code_of_its_own(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise EngineFailure("a pass failed — try again", "prefill")

    monkeypatch.setattr("runtime.decoder.Decoder.generate", broken)
    code, line = fail(capsys, "--engine-dir", str(tiny_engine), "--check", "--no-warmup")
    assert (code, "cannot answer: prefill: a pass failed" in line) == (4, True)
    code, line = fail(capsys, "--engine-dir", str(tiny_engine / "none"), "--check")
    assert code == 3
    code, line = fail(capsys, "--engine-dir", str(tiny_engine), "--check", "--log-prompts")
    assert (code, "needs --access-log" in line) == (1, True)


def test_an_answer_without_tokens_is_no_answer() -> None:
    class Empty:
        manifest = type("Manifest", (), {"tokens": type("Tokens", (), {"chats": {}})})

        def generate(self, *_: Any) -> Any:
            return type("Result", (), {"text": "", "stats": type("Stats", (), {"new_tokens": 0})})

    with pytest.raises(CheckFailed, match="has no token"):
        check([Empty()])  # type: ignore[list-item]


def test_ready_and_healthy_are_different_things(toy: ToyDecoder) -> None:
    other = ToyDecoder()
    with serving([toy, other], failures=1) as served:
        toy.failing = engine_failure()
        post(served)
        until(lambda: served.http.get("/healthz").status_code == 503)
        assert served.http.get("/readyz").json() == {"ready": True, "draining": False}
        other.failing = engine_failure()
        post(served, seed=1)
        until(lambda: served.http.get("/readyz").status_code == 503)
        assert served.http.get("/version").json()["engine"] == {"id": "toy", "tuning": None, "model": "toy"}


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(("host", "urls"), [("localhost", ["127.0.0.1", "[::1]"]), ("::1", ["[::1]"]), ("::", ["127.0.0.1", "[::1]"])])
def test_localhost_and_ipv6(host: str, urls: list[str]) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with listeners(host, 0) as bound:
        for each in bound:
            each.listen()
        port = bound[0].getsockname()[1]
        assert shown(bound[0]) == f"{'127.0.0.1' if host == 'localhost' else f'[{host}]'}:{port}"
        for url in urls:
            with socket.create_connection((url.strip("[]"), port), timeout=5):
                pass


def test_sockets_of_systemd_are_taken(tiny_engine: Path) -> None:
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        run = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.dup2(int(sys.argv.pop(1)), 3); "
        run += "from runtime.serve.cli import main; main()"
        line = [sys.executable, "-c", run, str(listener.fileno()), "--engine-dir", str(tiny_engine), "--no-warmup", "--port", "1"]
        environment = {**os.environ, "LISTEN_FDS": "1"}
        with subprocess.Popen(line, cwd=ROOT, env=environment, pass_fds=[listener.fileno()], stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                assert f"at {url}/v1" in process.stderr.readline()
                assert httpx.get(f"{url}/readyz", timeout=10).status_code == 200
            finally:
                process.kill()


def test_what_is_no_stream_socket_is_refused() -> None:
    assert inherited({"LISTEN_FDS": "1", "LISTEN_PID": "1"}) == []  # for another process
    code = "import os; from runtime.serve.sockets import inherited; inherited({'LISTEN_FDS': '1', 'LISTEN_PID': str(os.getpid())})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert f"{ServeError.__name__}: descriptor 3 from systemd is no stream socket" in done.stderr
