"""The process ends, forks or is copied while a Decoder lives: no abort, no hang, one clear line."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from runtime import Decoder, DecoderBusy, DecoderClosed, EngineDirError, EngineFailure, PromptError, SamplingParams
from runtime.backends.ort_process import TELEMETRY_VARIABLE, import_onnxruntime
from runtime.native_calls import NativeCalls
from tests.support.serve.serving import until

SHORT = SamplingParams(max_new_tokens=4, logprobs=1)

LOADS = """
import multiprocessing, os, signal, sys, threading
from runtime import Decoder, DecoderClosed, SamplingParams
decoder = Decoder(sys.argv[1], threads=2)
other = decoder.fork()
stream = other.stream("the cat")
next(stream)
started = threading.Event()

def decode():
    while True:
        decoder.encode("the cat " * 50)
        for _ in decoder.stream("the cat", SamplingParams(max_new_tokens=200)):
            started.set()
"""

DECODES_AT_EXIT = f"""{LOADS}
threading.Thread(target=decode, daemon=True).start()
started.wait()
if sys.argv[2] == "signal":
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()
sys.exit(int(sys.argv[2]))
"""

FORKS = f"""{LOADS}
def refused(call):
    try:
        call()
    except DecoderClosed as error:
        print(error, flush=True)

def child(new):
    for call in (lambda: decoder.generate("the cat"), decoder.warmup, decoder.fork, decoder.forget, lambda: next(stream)):
        refused(call)
    decoder.close()
    if new:
        with Decoder(sys.argv[1], threads=2) as own:
            print(own.generate("the cat", SamplingParams(max_new_tokens=4)).tokens, flush=True)

expected = decoder.generate("the cat", SamplingParams(max_new_tokens=4)).tokens
threading.Thread(target=decode, daemon=True).start()
started.wait()
process = multiprocessing.get_context("fork").Process(target=child, args=(False,))
process.start()
process.join()
print("multiprocessing", process.exitcode, flush=True)
if os.fork() == 0:
    child(True)
    decoder = stream = other = None  # frees what the child has of them
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.wait()[1]), expected, flush=True)
"""


LANES = """
import os, sys, threading
from runtime import Decoder, DecoderClosed, SamplingParams
decoder = Decoder(sys.argv[1], threads=2, lanes=4)
streams = [decoder.stream("the cat", SamplingParams(max_new_tokens=None)) for _ in range(4)]
next(streams[0])
if os.fork() == 0:
    for call in (decoder.warmup, decoder.forget, decoder.fork, lambda: next(streams[0]), lambda: decoder.generate("the cat")):
        try:
            call()
        except DecoderClosed as error:
            print(error, flush=True)
    decoder.close()
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
threading.Thread(target=lambda: [list(stream) for stream in streams], daemon=True).start()
if sys.argv[2] == "with":
    with decoder:
        sys.exit(5)
sys.exit(5)
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own. What it would wait for for ever ends it with an error."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = [sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + program, *arguments]
    return subprocess.run(code, capture_output=True, text=True, check=False, timeout=60, env=environment)


def test_a_daemon_thread_may_decode_when_the_process_ends(tiny_engine: Path) -> None:
    done = run(DECODES_AT_EXIT, str(tiny_engine), "5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "", "")


def test_and_when_a_signal_ends_it(tiny_engine: Path) -> None:
    done = run(DECODES_AT_EXIT, str(tiny_engine), "signal")
    assert done.returncode == -signal.SIGINT
    assert "terminate called" not in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_is_told_so_and_can_load_its_own(tiny_engine: Path) -> None:
    done = run(FORKS, str(tiny_engine))
    assert (done.returncode, done.stderr) == (0, "")
    *lines, own, end = done.stdout.splitlines()
    assert lines.pop(5) == "multiprocessing 0"
    assert len(lines) == 10
    assert {*lines} == {"this Decoder was loaded before this process was forked — load it after the fork, or start processes by spawn"}
    assert end == f"3 {own}"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("way", ["exit", "with"])
def test_lanes_may_run_when_the_process_ends_and_a_forked_child_is_told_so(tiny_engine: Path, way: str) -> None:
    done = run(LANES, str(tiny_engine), way)
    assert (done.returncode, done.stderr) == (5, "")
    *lines, end = done.stdout.splitlines()
    assert (len(lines), len({*lines}), end) == (5, 1, "3")
    assert lines[0].startswith("this Decoder was loaded before this process was forked")


def test_the_end_waits_for_running_calls_and_stops_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, inside, leave = NativeCalls(), threading.Event(), threading.Event()
    outcomes: list[str] = []

    def call() -> None:
        with calls:
            inside.set()
            leave.wait(20)
            outcomes.append("left")
        try:
            with calls:
                outcomes.append("began another one")
        except DecoderClosed as error:
            outcomes.append(str(error))

    thread, end = threading.Thread(target=call), threading.Thread(target=calls.end)
    thread.start()
    inside.wait(20)
    end.start()
    until(lambda: calls._ending)
    assert end.is_alive()
    monkeypatch.setattr("runtime.native_calls.EXIT_SECONDS", 0.01)
    leave.set()
    end.join(20)
    thread.join(20)
    assert outcomes == ["left", "the process is ending — cancel and join the threads that decode before that"]
    with calls:  # the main thread may go on: hooks of the program run now
        pass


def test_the_telemetry_variable_is_set_for_the_import_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TELEMETRY_VARIABLE, raising=False)
    assert import_onnxruntime() is sys.modules["onnxruntime"]
    assert TELEMETRY_VARIABLE not in os.environ
    monkeypatch.setenv(TELEMETRY_VARIABLE, "0")
    import_onnxruntime()
    assert os.environ[TELEMETRY_VARIABLE] == "0"


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda call: call.__name__)
def test_a_decoder_cannot_be_copied(tiny_engine: Path, copied: Any) -> None:
    with Decoder(tiny_engine) as decoder, decoder.stream("the cat") as stream:
        with pytest.raises(TypeError, match="a Decoder cannot be pickled or copied — load one in every process"):
            copied(decoder)
        with pytest.raises(TypeError, match="a Stream cannot be pickled or copied — pass on its Chunks"):
            copied(stream)


def test_what_it_gives_can_be_pickled(tiny_engine: Path) -> None:
    with Decoder(tiny_engine) as decoder:
        result, chunks = decoder.generate("the cat", SHORT), list(decoder.stream("the cat", SHORT))
        for value in (SHORT, result, chunks, result.stats, decoder.totals, decoder.manifest):
            assert pickle.loads(pickle.dumps(value)) == value
    for error in (PromptError("a", "empty"), EngineFailure("b", "draft"), EngineDirError("c"), DecoderBusy("d"), DecoderClosed("e")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
