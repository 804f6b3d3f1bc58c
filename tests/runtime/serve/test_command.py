"""resps-serve as a process over a real engine, asked by OpenAI's own client: the same answers as the Decoder's, and ends in good order."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from runtime import Decoder, SamplingParams
from runtime.console import run_command
from runtime.serve.cli import command
from runtime.serve.server import bind

ROOT = Path(__file__).resolve().parents[3]
MESSAGES: Any = [{"role": "user", "content": "the cat sat on the mat"}]


@contextmanager
def running(engine_dir: Path, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    line = [sys.executable, "-c", "from runtime.serve.cli import main; main()", "--engine-dir", str(engine_dir), "--port", "0", *arguments]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **environment}) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            assert "http://" in said, said + process.stderr.read()
            yield process, said.split()[-1]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url(tiny_engine: Path) -> Iterator[str]:
    with running(tiny_engine, "--replicas", "2", "--model-name", "tiny", "--no-warmup") as (_, url):
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.mark.parametrize(
    ("asked", "sampling"),
    [
        ({"temperature": 0}, SamplingParams()),
        ({"temperature": 1.2, "top_p": 0.9, "seed": 5}, SamplingParams(temperature=1.2, top_p=0.9, seed=5)),
        (
            {"temperature": 0.8, "seed": 6, "extra_body": {"top_k": 9, "speculation": False}},
            SamplingParams(temperature=0.8, top_k=9, seed=6),
        ),
    ],
    ids=["greedy", "sampled", "top-k, plain"],
)
def test_chat_is_the_decoder_s_answer_whole_and_streamed(
    client: openai.OpenAI, decoder: Decoder, asked: dict[str, Any], sampling: SamplingParams
) -> None:
    expected = decoder.generate(MESSAGES, replace(sampling, max_new_tokens=24))
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=24, **asked)
    assert whole.choices[0].message.content == expected.text
    assert whole.choices[0].finish_reason == ("stop" if expected.stop == "eos" else "length")
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (expected.stats.prompt_tokens, len(expected.tokens))
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=24, stream=True, stream_options={"include_usage": True}, **asked
    )
    events = list(stream)
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == expected.text
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == len(expected.tokens)
    rounds = sum(event.choices[0].finish_reason is None for event in events if event.choices)
    assert expected.stats.cycles + 1 <= rounds <= expected.stats.cycles + 2  # the first token, an event a round, perhaps held back text


def test_logprobs_and_stop(client: openai.OpenAI, decoder: Decoder) -> None:
    free = decoder.generate("the cat sat", SamplingParams(max_new_tokens=20))
    stop = free.text[len(free.text) // 2 :][:3]
    expected = decoder.generate("the cat sat", SamplingParams(max_new_tokens=20, stop=[stop], logprobs=2))
    came = client.completions.create(model="tiny", prompt="the cat sat", max_tokens=20, temperature=0, stop=[stop], logprobs=2)
    (choice,) = came.choices
    assert (choice.text, choice.finish_reason) == (expected.text, "stop")
    assert choice.logprobs is not None
    assert expected.logprobs is not None
    assert choice.logprobs.token_logprobs == pytest.approx([each.logprob for each in expected.logprobs])
    chat = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3, temperature=0, logprobs=True, top_logprobs=4)
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content
    assert content is not None
    assert [len(each.top_logprobs) for each in content] == [4] * len(content)
    assert all(each.logprob == each.top_logprobs[0].logprob for each in content)  # greedy takes the likeliest


@pytest.mark.parametrize("stream", [False, True])
def test_joined_bytes_are_the_answer_and_none_is_unknown(client: openai.OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {"max_tokens": 60, "temperature": 1.5, "seed": 2, "logprobs": True, "top_logprobs": 20}
    came = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=stream, **asked)
    choices = [event.choices[0] for event in came] if stream else [came.choices[0]]
    text = "".join((choice.delta if stream else choice.message).content or "" for choice in choices)
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content or ()]
    assert b"".join(bytes(entry.bytes) for entry in entries).decode("utf-8", "replace") == text
    likely = [each for entry in entries for each in entry.top_logprobs]
    assert all(each.bytes is not None for each in likely)
    assert any(each.token == "\ufffd" and len(each.bytes) == 1 for each in likely)  # a part of a character


def test_completions_name_parts_of_characters_by_their_bytes(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": "the cat", "max_tokens": 60, "temperature": 1.5, "seed": 2, "logprobs": 20}
    (choice,) = client.completions.create(model="tiny", **asked).choices
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.text_offset is not None
    parts = [token for token in choice.logprobs.tokens if token.startswith("bytes:")]
    assert all(re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", part) for part in parts)
    assert parts
    assert choice.logprobs.text_offset == sorted(choice.logprobs.text_offset)
    before = ""
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        if token.isalpha() and token.isascii() and not before.startswith("bytes:"):
            assert choice.text[offset:].startswith(token)
        before = token
    streamed = [event.choices[0].logprobs for event in client.completions.create(model="tiny", stream=True, **asked)]
    assert [offset for each in streamed if each for offset in each.text_offset or ()] == choice.logprobs.text_offset


def metrics(url: str) -> dict[str, float]:
    """Sums over replicas and labels, by name."""
    sums: dict[str, float] = {}
    for line in httpx.get(f"{url.removesuffix('/v1')}/metrics").text.splitlines():
        if not line.startswith("#"):
            name, value = line.partition("{")[0].partition(" ")[0], float(line.rpartition(" ")[2])
            sums[name] = sums.get(name, 0.0) + value
    return sums


def test_metrics_count_what_answers_report(url: str) -> None:
    before = metrics(url)
    body = {"prompt": "the cat the cat the cat the", "max_tokens": 60, "temperature": 0}
    answers = [httpx.post(f"{url}/completions", json=body, timeout=30).json() for _ in range(2)]
    after = metrics(url)
    stats = [answer["resps"]["stats"] for answer in answers]
    for name, field in (
        ("prompt_tokens", "prompt_tokens"),
        ("prompt_tokens_cached", "cached_prompt_tokens"),
        ("generation_tokens", "new_tokens"),
        ("spec_decode_num_draft_tokens", "drafted"),
        ("spec_decode_num_accepted_tokens", "accepted"),
        ("policy_actions", "cycles"),
    ):
        told = after[f"resps:{name}_total"] - before.get(f"resps:{name}_total", 0.0)
        assert told == sum(each[field] for each in stats), name
    assert stats[1]["cached_prompt_tokens"] > 0  # the replica that knows the prompt was taken
    assert stats[0]["drafted"] > 0
    positions = sum(sum(each["num_accepted_tokens_per_pos"]) for each in stats)
    name = "resps:spec_decode_num_accepted_tokens_per_pos_total"
    assert after.get(name, 0.0) - before.get(name, 0.0) == positions == sum(each["accepted"] for each in stats)


def test_the_guide_names_options_and_metrics_that_there_are(url: str) -> None:
    from export.tuning.cli import command as tune
    from runtime.serve.triton.repository import command as repository
    from tests.stress.fuzz_serve import main as fuzz
    from tests.stress.load_serve import main as load

    guide = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    given = {option for each in (command, tune, repository, fuzz, load) for parameter in each.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", guide)) - {"--model-repository"} <= given
    page = httpx.get(f"{url.removesuffix('/v1')}/metrics").text
    for name in re.findall(r"resps:[a-z_0-9]+", guide):
        assert f"# TYPE {name} " in page or f"# TYPE {name.removesuffix('_total')} " in page, name


def test_errors_are_openai_s_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="n: one answer"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, n=2)
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.chat.completions.create(model="other", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="unknown policy"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body={"policy": "magic"})
    with pytest.raises(openai.BadRequestError, match="the context holds") as caught:
        client.completions.create(model="tiny", prompt="the cat " * 5000)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    long: Any = [{"role": "user", "content": "the cat " * 5000}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=long)
    assert (caught.value.code, caught.value.param, caught.value.type) == ("context_length_exceeded", "messages", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt=[99999])
    assert (caught.value.code, caught.value.param) == ("invalid_prompt", "prompt")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=3)
    assert (caught.value.code, caught.value.param) == ("decimal_above_max_value", "temperature")
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_sigterm_finishes_what_runs_and_exits_well(tiny_engine: Path) -> None:
    with running(tiny_engine, "--no-warmup", "--model-name", "tiny") as (process, url), httpx.Client(timeout=30) as http:
        asked = {"prompt": "the cat", "max_tokens": 200, "temperature": 1.5, "seed": 3, "stream": True}
        with http.stream("POST", f"{url}/completions", json=asked) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert first.startswith("data: ")
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason": "' in rest[-2]
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_killed_server_s_port_serves_again_at_once(tiny_engine: Path) -> None:
    with running(tiny_engine, "--no-warmup") as (first, url), httpx.Client(timeout=30) as http:
        port = url.split(":")[-1].partition("/")[0]
        asked = {"prompt": "the cat", "max_tokens": 5, "temperature": 0}
        text = http.post(f"{url}/completions", json=asked).json()["choices"][0]["text"]
        first.kill()
        first.wait()
        with running(tiny_engine, "--no-warmup", "--port", port) as (_, again), httpx.Client(timeout=30) as other:
            assert again == url
            assert other.post(f"{again}/completions", json=asked).json()["choices"][0]["text"] == text


def read(url: str, body: dict[str, Any], begun: threading.Semaphore) -> tuple[str, bool]:
    """Text of a stream, and whether it had an end. ``begun``: told when its first event is there, or when it broke."""
    text, ended, told = "", False, False
    try:
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=300) as stream:
            for line in filter(None, stream.iter_lines()):
                ended = line == "data: [DONE]"
                text += "" if ended else json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                if not told:
                    begun.release()
                    told = True
    except httpx.TransportError:
        return text, False
    return text, ended


def test_killed_under_streams_it_serves_again_and_leaves_nothing(tiny_engine: Path, tmp_path: Path) -> None:
    place = {name: str(tmp_path / name) for name in ("TMPDIR", "XDG_RUNTIME_DIR", "HOME")}
    for folder in place.values():
        Path(folder).mkdir()
    files = {file.name: file.stat().st_mtime_ns for file in tiny_engine.iterdir()}
    asked = [{"prompt": "the cat", "max_tokens": 1500, "temperature": 1.5, "seed": seed, "stream": True} for seed in range(12)]
    options, begun = ("--no-warmup", "--replicas", "2", "--queue-seconds", "300", "--request-seconds", "600"), threading.Semaphore(0)
    with ThreadPoolExecutor(12) as clients:
        with running(tiny_engine, *options, **place) as (first, url):
            broken = [clients.submit(read, url, body, begun) for body in asked]
            assert begun.acquire(timeout=60)  # of twelve, two run and ten wait
            first.kill()
            first.wait()
        cut = [each.result() for each in broken]
        assert not all(ended for _, ended in cut)
        with running(tiny_engine, *options, "--port", url.split(":")[-1].partition("/")[0], **place) as (second, again):
            assert again == url
            whole = [each.result() for each in [clients.submit(read, again, body, begun) for body in asked]]
            assert all(ended for _, ended in whole)
            assert all(text.startswith(part) for (text, _), (part, _) in zip(whole, cut, strict=True))
            second.kill()
            second.wait()
    assert [list(Path(folder).iterdir()) for folder in place.values()] == [[], [], []]
    assert {file.name: file.stat().st_mtime_ns for file in tiny_engine.iterdir()} == files


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = run_command(command, "resps-serve", arguments, extra="serve")
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return code, err


def test_what_keeps_it_from_starting_is_one_line(tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = complaint(capsys, "--engine-dir", str(tmp_path / "none"))
    assert (code, "resps-export" in line) == (3, True)
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        code, line = complaint(capsys, "--engine-dir", str(tiny_engine), "--port", str(taken.getsockname()[1]))
    assert (code, "choose another --host or --port" in line) == (1, True)
    code, line = complaint(capsys, "--engine-dir", str(tiny_engine), "--port", "0", "--policy", "magic")
    assert (code, "unknown policy" in line) == (2, True)
    code, line = complaint(capsys, "--engine-dir", str(tiny_engine), "--host", "999.1.1.1")
    assert (code, "cannot listen" in line) == (1, True)


def test_missing_package_is_named(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "runtime.serve.server")
    code, line = complaint(capsys, "--engine-dir", str(tiny_engine))
    assert (code, "uvicorn is not installed — pip install 'resps[serve]'" in line) == (1, True)
