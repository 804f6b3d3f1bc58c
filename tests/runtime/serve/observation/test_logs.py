"""The access log and crash reports: what happened, and no prompt, answer or key."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from runtime.serve.errors import ServeError
from runtime.serve.observation.json_lines import JsonLines
from runtime.serve.observation.settings import Observation
from runtime.serve.protection.keys import Key, Keys
from runtime.serve.protection.settings import Protection
from tests.support.serve.fakes import ToyDecoder, engine_failure, toy_answer
from tests.support.serve.serving import serving, until

PROMPT = "a secret prompt"
HEADERS = {"Authorization": "Bearer alice-key"}
PROTECTION = Protection(Keys((Key("alice", sha256(b"alice-key").digest()),)))


def lines(file: Path, count: int) -> list[dict[str, Any]]:
    until(lambda: file.exists() and file.read_text().count("\n") >= count)  # a line is written after the response
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_for_each_request_without_what_was_said(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    with serving([ToyDecoder()], protection=PROTECTION, observation=Observation(file)) as served:
        body = {"prompt": PROMPT, "max_tokens": 20}
        served.http.post("/v1/completions?api_key=secret", json=body, headers=HEADERS)
        served.http.post("/v1/completions", json=body)
        served.http.get("/healthz")
        answered, refused, health = sorted(lines(file, 3), key=lambda line: (line["path"] == "/healthz", line["status"]))
        tokens = len(toy_answer(PROMPT.encode())[:20])
        assert {name: answered[name] for name in ("client", "key", "method", "path", "status", "outcome", "stream")} == {
            "client": "127.0.0.1", "key": "alice", "method": "POST", "path": "/v1/completions", "status": 200,
            "outcome": "eos" if tokens < 20 else "length", "stream": False,
        }  # fmt: skip
        assert (answered["prompt_tokens"], answered["completion_tokens"]) == (len(PROMPT), tokens)
        assert 0 <= answered["queue_seconds"] <= answered["first_token_seconds"] <= answered["seconds"]
        assert answered["bytes_in"] == len(json.dumps(body, separators=(",", ":")))
        assert answered["bytes_out"] > 100
        assert (refused["status"], refused["key"], "outcome" in refused) == (401, None, False)
        assert (health["path"], health["status"]) == ("/healthz", 200)
        assert "secret" not in file.read_text()
        file.rename(tmp_path / "rotated")
        served.http.get("/healthz")
        assert len(lines(file, 1)) == 1


def test_prompts_are_written_when_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    with serving([ToyDecoder()], observation=Observation(file, prompts=True)) as served:
        served.http.post("/v1/completions", json={"prompt": f"{PROMPT}\n%s"})
        (line,) = lines(file, 1)
        assert json.loads(line["body"])["prompt"] == f"{PROMPT}\n%s"


def test_a_crash_report_says_what_failed_and_not_what_was_said(tmp_path: Path) -> None:
    file, toy = tmp_path / "crashes.jsonl", ToyDecoder(lanes=2)
    with serving([toy], protection=PROTECTION, observation=Observation(crash_log=file)) as served:
        body = {"prompt": PROMPT, "max_tokens": 20, "policy": "fixed"}
        for error in (engine_failure(), ValueError(f"{PROMPT} cannot be read")):
            toy.failing = error
            assert served.http.post("/v1/completions", json=body, headers=HEADERS).status_code == 500
        engine, internal = lines(file, 2)
        assert (engine["error"], engine["stage"], engine["engine"], engine["replica"]) == ("EngineFailure", "verify", "toy", 0)
        assert engine["message"].startswith("verify: the scores are not finite")
        assert engine["request"]["prompt_tokens"] == len(PROMPT)
        assert engine["request"]["policy"] == "fixed"
        assert engine["lanes"] == [[]]
        assert {"python", "numpy", "starlette"} <= set(engine["versions"])
        assert any(frame.startswith("fakes.py:") for frame in engine["frames"])
        assert (internal["error"], internal["message"]) == ("ValueError", None)
        toy.failing = ValueError("not our prompt")
        served.http.post("/v1/completions", json={"prompt": "ü", "logprobs": 99}, headers=HEADERS)  # no crash
        assert len(lines(file, 2)) == 2
    assert "secret" not in file.read_text()
    assert "alice" not in file.read_text()


def test_a_log_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="cannot write"):
        JsonLines(tmp_path / "none" / "access.jsonl")
