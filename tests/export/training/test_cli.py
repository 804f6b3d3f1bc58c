"""The whole resps-train command, from generating conversations to packing the draft, and its errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from export.checkpoints.draft_checkpoint import open_draft
from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.training.cli import command
from export.training.collect import open_target
from export.training.segments import ANSWER
from export.training.shards import stored_conversations
from runtime.console import run_command
from tests.support.tiny import write_checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("target")
    write_checkpoint(directory)
    return directory


def test_from_words_to_a_packed_draft(tmp_path: Path, weights: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also from conversations in a file, which are stored unchanged, with a stop token only after finished answers."""
    talks: list[dict[str, Any]] = [
        {"prompt": "the cat", "answer": "sat on"},
        {"prompt": "a dog", "answer": "on the mat", "finished": False},
    ]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(each) + "\n" for each in talks))
    shards, draft = tmp_path / "data", tmp_path / "draft"

    def train(*arguments: str | Path) -> str:
        assert run_command(command, "resps-train", list(map(str, arguments))) == 0
        return capfd.readouterr().out

    train("answers", "--weights", weights, "--out", shards, "--batch", "3", "--capacity", "96", tmp_path / "some.jsonl")
    raw = open_target("smollm2-135m", str(weights)).text.encode_raw
    found = [each.load() for each in stored_conversations(shards)]
    expected = [
        [*raw("user: "), *raw(each["prompt"]), *raw("\n"), *raw(each["answer"]), *([2] if each.get("finished", True) else [])]
        for each in talks
    ]
    assert sorted(each.tokens.tolist() for each in found) == sorted(expected)
    for each in found:
        answer = each.tokens[each.kinds == ANSWER].tolist()
        assert answer in [[*raw("sat on"), 2], raw("on the mat")]

    train("words", "--weights", weights, "--out", shards, "--batch", "4", "--capacity", "64", "--tokens", "600")
    assert len(stored_conversations(shards)) > 8
    settings = ["--minutes", "0.02", "--steps", "2", "--vocab", "50", "--batch-tokens", "256"]
    printed = train("train", "--weights", weights, "--data", shards, "--out", tmp_path / "run", *settings)
    assert json.loads(printed.splitlines()[-1])["updates"] > 0
    assert "is written" in train("pack", "--run", tmp_path / "run", "--out", draft)
    assert len(open_draft(draft, HuggingFaceCheckpoint(weights)).tokens) == 50


def test_failures_are_one_line(tmp_path: Path, weights: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, bad, latin = tmp_path / "data", tmp_path / "bad.jsonl", tmp_path / "latin.jsonl"
    data.mkdir()
    (data / "words-000-00000.safetensors").write_bytes(b"")
    bad.write_text('{"prompt": "the cat", "answer": "sat"}\n{"prompt": "a dog", "answer": 7}\n')
    latin.write_bytes(b"caf\xe9")
    target = ["--weights", weights]
    cases: list[tuple[list[Any], int, str]] = [
        ([], 2, "Missing command. — see resps-train --help"),
        (["learn"], 2, "learn"),
        (["words"], 2, "'--out'. — see resps-train words --help"),
        (["words", "--out", data, "--tokens", "0"], 2, "--tokens"),
        (["words", "--out", data, "--device", "tpu"], 2, "--device"),
        (["words", *target, "--out", data], 1, "has shards words-000-* already — choose another --seed"),
        (["words", "--weights", tmp_path / "none", "--out", data], 1, "there are no weights at"),
        (["words", "--model", "gpt-9", "--out", data], 2, "unknown model"),
        (["answers", *target, "--out", tmp_path, bad], 1, "line 2 has no prompt and answer"),
        (["answers", *target, "--out", tmp_path, latin], 1, "is not UTF-8 text (byte 3)"),
        (["train", *target, "--data", tmp_path, "--out", tmp_path / "run", "--vocab", "9"], 1, "no conversation to train on"),
        (["pack", "--run", tmp_path, "--out", tmp_path / "draft"], 1, "state.pt is missing"),
    ]
    for arguments, code, says in cases:
        assert run_command(command, "resps-train", list(map(str, arguments))) == code, arguments
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1), (arguments, err)
        assert says in err, arguments


def test_without_torch_there_is_help_and_a_line_that_names_the_extra(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from export.training.cli import main; main()"

    def train(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)

    for subcommand in ("words", "answers", "train", "pack"):
        assert train(subcommand, "--help").returncode == 0
        assert subcommand in train("--help").stdout
    done = train("words", "--out", str(tmp_path / "data"))
    assert (done.returncode, done.stderr) == (1, "resps-train: torch is not installed — pip install 'resps[train]'\n")
