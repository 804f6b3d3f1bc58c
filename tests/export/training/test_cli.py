"""The whole resps-train command, from generating conversations to packing the draft, and its errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from export.checkpoints.draft_checkpoint import open_draft
from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.training import budget
from export.training.cli import command
from runtime.console import run_command
from tests.support.tiny import write_checkpoint

KILLED = """
from export.training import run
from export.training.cli import main
run.CHECKPOINT_SECONDS, run.REPORT_SECONDS, run.REPORT_SHARE = -1, -1, 1e9
main()
"""  # saves and reports after every update


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("target")
    write_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """What words wrote, beside lines with prompts and answers."""
    directory = tmp_path_factory.mktemp("data")
    options = ["--weights", weights, "--out", directory / "words", "--batch", "4", "--capacity", "64", "--tokens", "900"]
    assert run_command(command, "resps-train", ["words", *map(str, options), "--text", "chat", "--text", "code"]) == 0
    talks = [{"prompt": "the cat", "answer": "sat on the mat and sat on the mat"}, {"prompt": "a dog", "answer": "on the mat"}]
    (directory / "some.jsonl").write_text("".join(json.dumps(each) + "\n" for each in talks))
    return directory


def run_options(data: Path, weights: Path, run: Path) -> list[str]:
    sizes = ["--steps", "2", "--vocab", "50", "--batch-tokens", "128", "--minutes", "1000", "--patience", "0"]
    return list(map(str, ["train", "--weights", weights, "--data", data / "words", "--data", data / "some.jsonl", "--out", run, *sizes]))


def test_from_words_to_a_packed_draft(tmp_path: Path, weights: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def train(*arguments: str | Path) -> tuple[str, str]:
        assert run_command(command, "resps-train", list(map(str, arguments))) == 0
        return capfd.readouterr()

    out, err = train(*run_options(data, weights, tmp_path / "run"), "--weight", "code=2", "--tokens", "600")
    need, line = out.splitlines()
    assert need.startswith("needs up to ")
    assert "tokens, loss" in line
    assert err.splitlines()[-1] == "training: done"
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") == 2
    assert all(f"<td>{text}</td>" in page for text in ("chat", "code", "some"))
    assert "src=" not in page
    assert "is written" in train("pack", "--run", tmp_path / "run", "--out", tmp_path / "draft")[0]
    assert len(open_draft(tmp_path / "draft", HuggingFaceCheckpoint(weights)).tokens) == 50
    again = train(*run_options(data, weights, tmp_path / "on"), "--draft", tmp_path / "draft", "--tokens", "100")[0]
    assert len(again.splitlines()) == 3  # what is needed, the draft as it was given, the end


def test_killed_run_goes_on(tmp_path: Path, weights: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is killed twice while it saves after every update. What was reported is never lost, and no half file stays in the way."""
    options, history = run_options(data, weights, tmp_path), list[Any]()
    killed = [sys.executable, "-c", KILLED, *options]
    for killed_before in range(2):
        with subprocess.Popen(killed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            for _ in range(4 + killed_before):  # what is needed, that it goes on, and three reports
                assert process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
        saved = torch.load(tmp_path / "state.pt", weights_only=True)
        assert saved["history"][: len(history)] == history
        assert len(saved["history"]) >= len(history) + 3
        history = saved["history"]
        assert history[-1]["updates"] == saved["updates"]
    assert run_command(command, "resps-train", [*options, "--tokens", str(saved["seen"] + 200)]) == 0
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[: len(history)] == history
    assert log[-1]["tokens"] >= saved["seen"] + 200
    assert run_command(command, "resps-train", ["pack", "--run", str(tmp_path), "--out", str(tmp_path / "draft")]) == 0


def test_machine_that_is_too_small_is_refused(
    tmp_path: Path, weights: Path, data: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["words", "--weights", str(weights), "--out", str(tmp_path / "more"), "--tokens", "9"]
    monkeypatch.setattr(budget, "usable_memory", lambda: 100 << 20)
    for arguments in (words, run_options(data, weights, tmp_path / "run")):
        assert run_command(command, "resps-train", arguments) == 1
        assert "MiB of memory are needed, this process may use 100 — make the batch smaller" in capfd.readouterr().err
    monkeypatch.undo()
    assert run_command(command, "resps-train", [*words, "--tokens", str(10**15)]) == 1
    assert "MiB free, up to" in capfd.readouterr().err


def test_failures_are_one_line(tmp_path: Path, weights: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad, latin, shards = tmp_path / "bad.jsonl", tmp_path / "latin.jsonl", tmp_path / "shards"
    shards.mkdir()
    (shards / "words-000-00000.npz").write_bytes(b"")
    bad.write_text('{"prompt": "the cat", "answer": "sat"}\n{"prompt": "a dog", "answer": 7}\n')
    latin.write_bytes(b"caf\xe9")
    short, empty = tmp_path / "short.txt", tmp_path / "empty.txt"
    short.write_text("\nthe cat sat on the mat and the\n")
    empty.write_text("\n \n")
    target = ["--weights", weights]
    long = ["words", *target, "--out", tmp_path / "long", "--long-texts"]
    run = ["train", *target, "--out", tmp_path / "run", "--data"]
    cases: list[tuple[list[Any], int, str]] = [
        ([], 2, "Missing command. — see resps-train --help"),
        (["learn"], 2, "learn"),
        (["words"], 2, "'--out'. — see resps-train words --help"),
        (["words", "--out", shards, "--tokens", "0"], 2, "--tokens"),
        (["words", "--out", shards, "--device", "tpu"], 2, "--device"),
        (["words", "--out", shards, "--text", "poem"], 2, "--text"),
        (["words", *target, "--out", shards], 1, "has shards words-000-* already — choose another --seed"),
        ([*long, short, "--text", "chat"], 1, '--long-texts is for the kind "long text", which is not asked for — add --text'),
        ([*long, short, "--capacity", "449"], 1, "line 2 has 8 tokens, a conversation of 449 has room for 1 — shorten it"),
        ([*long, empty], 1, "has no text — write one text a line"),
        ([*long, latin], 1, "is not UTF-8 text (byte 3)"),
        (["words", "--weights", tmp_path / "none", "--out", shards], 1, "there are no weights at"),
        (["words", "--model", "gpt-9", "--out", shards], 2, "unknown model"),
        ([*run, bad], 1, "line 2 has no prompt and answer"),
        ([*run, latin], 1, "is not UTF-8 text (byte 3)"),
        ([*run, shards], 1, "holds no conversations"),
        ([*run, data / "words", "--weight", "chat"], 2, "not a kind of text and a factor"),
        ([*run, data / "words", "--weight", "poem=2"], 1, "no text of the kind poem — its kinds are chat, code"),
        ([*run, data / "words", "--steps", "90"], 1, "no conversation to train on"),
        (["pack", "--run", tmp_path, "--out", tmp_path / "draft"], 1, "best.pt is missing"),
    ]
    for arguments, code, says in cases:
        assert run_command(command, "resps-train", list(map(str, arguments))) == code, arguments
        err = capfd.readouterr().err
        assert err.count("\n") == 1, (arguments, err)
        assert says in err, arguments


def test_without_torch_there_is_help_and_a_line_that_names_the_extra(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from export.training.cli import main; main()"

    def train(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)

    for subcommand in ("words", "train", "pack"):
        assert train(subcommand, "--help").returncode == 0
        assert subcommand in train("--help").stdout
    done = train("words", "--out", str(tmp_path / "data"))
    assert (done.returncode, done.stderr) == (1, "resps-train: torch is not installed — pip install 'resps[train]'\n")
