"""The life of the process resps-serve: start, SIGTERM, SIGKILL and restart, and what keeps it from starting."""

from __future__ import annotations

import json
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.console import run_command
from runtime.lanes.choose import PROCESS_BYTES
from runtime.manifest.believed import FILE_NAME as HASHED
from runtime.manifest.load import read_manifest
from runtime.serve.cli import command
from runtime.serve.load import load_replicas
from runtime.serve.sockets import bind
from tests.support.serve.fakes import ToyDecoder
from tests.support.serve.process import running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_running_requests_and_exits_with_0(tiny_engine: Path, number: signal.Signals) -> None:
    with running(tiny_engine, "--no-warmup", "--model-name", "tiny") as (process, url), httpx.Client(timeout=30) as http:
        body = {"prompt": "the cat", "max_tokens": 200, "temperature": 1.5, "seed": 3, "stream": True}
        with http.stream("POST", f"{url}/completions", json=body) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            process.send_signal(number)
            rest = [line for line in lines if line]
        assert first.startswith("data: ")
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason": "' in rest[-2]
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_the_port_of_a_killed_server_can_be_used_at_once(tiny_engine: Path) -> None:
    with running(tiny_engine, "--no-warmup") as (first, url), httpx.Client(timeout=30) as http:
        port = url.split(":")[-1].partition("/")[0]
        body = {"prompt": "the cat", "max_tokens": 5, "temperature": 0}
        text = http.post(f"{url}/completions", json=body).json()["choices"][0]["text"]
        first.kill()
        first.wait()
        with running(tiny_engine, "--no-warmup", "--port", port) as (_, again), httpx.Client(timeout=30) as other:
            assert again == url
            assert other.post(f"{again}/completions", json=body).json()["choices"][0]["text"] == text


def read_stream(url: str, body: dict[str, Any], started: threading.Semaphore) -> tuple[str, bool]:
    """The text of a stream, and whether it was complete. ``started`` is released at its first event."""
    text, complete, first = "", False, True
    try:
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=300) as stream:
            for line in filter(None, stream.iter_lines()):
                complete = line == "data: [DONE]"
                text += "" if complete else json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                if first:
                    started.release()
                    first = False
    except httpx.TransportError:
        return text, False
    return text, complete


def test_a_server_killed_during_streams_can_restart_and_leaves_no_files(tiny_engine: Path, tmp_path: Path) -> None:
    folders = {name: str(tmp_path / name) for name in ("TMPDIR", "XDG_RUNTIME_DIR", "HOME")}
    for folder in folders.values():
        Path(folder).mkdir()
    files = {file.name: file.stat().st_mtime_ns for file in tiny_engine.iterdir() if file.name != HASHED}
    bodies = [{"prompt": "the cat", "max_tokens": 1500, "temperature": 1.5, "seed": seed, "stream": True} for seed in range(12)]
    options, started = ("--no-warmup", "--replicas", "2", "--queue-seconds", "300", "--request-seconds", "600"), threading.Semaphore(0)
    with ThreadPoolExecutor(12) as clients:
        with running(tiny_engine, *options, **folders) as (first, url):
            streams = [clients.submit(read_stream, url, body, started) for body in bodies]
            assert started.acquire(timeout=60)  # two of twelve run, ten wait
            first.kill()
            first.wait()
        cut = [each.result() for each in streams]
        assert not all(complete for _, complete in cut)
        with running(tiny_engine, *options, "--port", url.split(":")[-1].partition("/")[0], **folders) as (second, again):
            assert again == url
            whole = [each.result() for each in [clients.submit(read_stream, again, body, started) for body in bodies]]
            assert all(complete for _, complete in whole)
            assert all(text.startswith(part) for (text, _), (part, _) in zip(whole, cut, strict=True))
            second.kill()
            second.wait()
    assert [list(Path(folder).iterdir()) for folder in folders.values()] == [[], [], []]
    assert {file.name: file.stat().st_mtime_ns for file in tiny_engine.iterdir() if file.name != HASHED} == files


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run resps-serve, which must print one line. Returns the exit code and the line."""
    code = run_command(command, "resps-serve", arguments, extra="serve")
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return code, err


def test_errors_at_start_up_are_one_line(tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = fail(capsys, "--engine-dir", str(tmp_path / "none"))
    assert (code, "resps-export" in line) == (3, True)
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        code, line = fail(capsys, "--engine-dir", str(tiny_engine), "--port", str(taken.getsockname()[1]))
    assert (code, "choose another --host or --port" in line) == (1, True)
    code, line = fail(capsys, "--engine-dir", str(tiny_engine), "--port", "0", "--policy", "magic")
    assert (code, "unknown policy" in line) == (2, True)
    code, line = fail(capsys, "--engine-dir", str(tiny_engine), "--host", "999.1.1.1")
    assert (code, "cannot listen" in line) == (1, True)


def test_lanes_that_this_engine_or_machine_has_not_are_refused(
    tiny_engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_manifest(tiny_engine)
    old = replace(found, graphs={name: graph for name, graph in found.graphs.items() if name != "target_lanes"})
    monkeypatch.setattr("runtime.serve.load.read_manifest", lambda _: old)
    code, line = fail(capsys, "--engine-dir", str(tiny_engine), "--port", "0", "--lanes", "4")
    assert (code, found.rebuild in line) == (3, True)
    monkeypatch.setattr("runtime.serve.load.read_manifest", lambda _: found)
    monkeypatch.setattr("runtime.lanes.choose.usable_memory", lambda: PROCESS_BYTES)
    code, line = fail(capsys, "--engine-dir", str(tiny_engine), "--port", "0", "--lanes", "4")
    assert (code, "at most --lanes 1 would fit" in line) == (2, True)


def test_replicas_are_loaded_with_the_lanes_that_were_chosen(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("runtime.serve.load.choose_lanes", lambda manifest, lanes, **given: asked.append({"lanes": lanes, **given}) or 5)
    monkeypatch.setattr("runtime.serve.load.Decoder", lambda directory, **given: asked.append(given) or ToyDecoder(lanes=given["lanes"]))
    (decoder,) = load_replicas(tiny_engine, 1, 7, warm=False, threads=3, draft="ngram")
    assert decoder.lanes == 5
    assert asked[0] == {"lanes": 7, "replicas": 1, "threads": 3, "draft": "ngram", "device": None, "backend": None}
    assert (asked[1]["lanes"], asked[1]["threads"], asked[1]["draft"]) == (5, 3, "ngram")


def test_missing_package_is_named(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "runtime.serve.server")
    code, line = fail(capsys, "--engine-dir", str(tiny_engine))
    assert (code, "uvicorn is not installed — pip install 'resps[serve]'" in line) == (1, True)
