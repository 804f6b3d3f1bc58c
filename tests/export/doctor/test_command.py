"""resps-bench --doctor as a command, on a tiny pair: its output, its exit codes and its usage."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from export.doctor.evidence import collect
from runtime.bench.cli import SICK, command
from runtime.console import run_command
from runtime.errors import BenchError
from runtime.manifest.load import load_manifest
from tests.support.doctor_faults import changed
from tests.support.doctor_pairs import LLAMA_2
from tests.support.eagle_engines import export, write_echo

TOLD = r"the chat template %s: with it guess 1 is right at 0\.\d\d; with the model's guess 1 is right at 0\.\d\d — export from .*"
SMALL = ("--max-context", "250", "--prefill-rows", "16")


def doctor(engine: Path, *arguments: str) -> int:
    asked = ["--prompts", str(engine.parent / "asked.txt"), "--max-new-tokens", "40", "--threads", "1"]
    (engine.parent / "asked.txt").write_text("the cat sat\na dog on the log\nthe log\nthe cat and the dog\n")
    return run_command(command, "resps-bench", ["--doctor", "--engine-dir", str(engine), *asked, *arguments])


def test_a_config_that_was_edited_is_found(echo_engine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(load_manifest(echo_engine).rebuild)
    draft = Path(shutil.copytree(words[words.index("--draft-weights") + 1], tmp_path / "draft"))
    changed(draft / "config.json", norm_before_residual=False)
    assert doctor(echo_engine, "--draft-weights", str(draft), "--json") == SICK
    data = json.loads(capfd.readouterr().out)
    assert data["findings"][0]["fault"] == "the residual of the draft's layer should be normed"
    assert 0 < data["levels"][0]["low"] < data["levels"][0]["share"] < 1


def test_a_config_that_was_corrected_after_the_export_is_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target, draft = tmp_path / "target", tmp_path / "draft"
    write_echo(target, draft)
    right = (draft / "config.json").read_text()
    changed(draft / "config.json", norm_before_residual=False)
    engine = export(target, draft, tmp_path, *SMALL)
    (draft / "config.json").write_text(right)
    assert doctor(engine) == SICK
    assert "the engine does not draft as the checkpoint says, but with norm_before_residual false" in first_finding(capfd)


def test_a_template_of_another_family_is_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target, draft = tmp_path / "target", tmp_path / "draft"
    write_echo(target, draft)
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_start|>"])
    tokenizer.save(str(target / "tokenizer.json"))
    changed(target / "tokenizer_config.json", chat_template=LLAMA_2)
    assert doctor(export(target, draft, tmp_path, *SMALL)) == SICK
    assert re.fullmatch(TOLD % r"never writes <\|im_start\|>, with which this model's turns begin", first_finding(capfd))


def test_a_template_that_is_not_the_checkpoints_is_found(
    echo_engine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the answers under the right one are too short to compare."""
    words = shlex.split(load_manifest(echo_engine).rebuild)
    target = Path(shutil.copytree(words[words.index("--weights") + 1], tmp_path / "target"))
    changed(target / "tokenizer_config.json", chat_template=LLAMA_2)
    assert doctor(echo_engine, "--weights", str(target)) == SICK
    assert re.fullmatch(TOLD % "is not the checkpoint's own", first_finding(capfd))

    def too_short(*given: Any) -> Any:
        monkeypatch.setattr("export.doctor.run.collect", fails)
        return collect(*given)

    def fails(*_: Any) -> None:
        raise BenchError("too short")

    monkeypatch.setattr("export.doctor.run.collect", too_short)
    assert doctor(echo_engine, "--weights", str(target)) == SICK
    assert "; with the model's the answers are too short to tell — export from" in first_finding(capfd)


def test_a_wrong_template_is_told_though_the_answers_are_too_short_to_judge_the_draft(
    echo_engine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(load_manifest(echo_engine).rebuild)
    target = Path(shutil.copytree(words[words.index("--weights") + 1], tmp_path / "target"))
    changed(target / "tokenizer_config.json", chat_template=LLAMA_2)
    assert doctor(echo_engine, "--weights", str(target), "--max-new-tokens", "8") == SICK
    assert "is not the checkpoint's own: with it the answers are too short to tell; with the model's" in first_finding(capfd)
    assert doctor(echo_engine, "--max-new-tokens", "8") == 2
    assert "the answers have fewer than 60 tokens together" in capfd.readouterr().err


def first_finding(capfd: pytest.CaptureFixture[str]) -> str:
    return next(line for line in capfd.readouterr().out.splitlines() if " — " in line)


def test_refusals_are_one_line(tiny_engine: Path, echo_engine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    words = shlex.split(load_manifest(echo_engine).rebuild)
    shutil.copytree(words[words.index("--draft-weights") + 1], other)
    tensors = load_file(other / "model.safetensors")
    save_file({**tensors, "norm.weight": tensors["norm.weight"] * 1.1}, other / "model.safetensors")
    for arguments, code, says in (
        ((echo_engine, "--draft-weights", str(other)), 2, "was exported from another draft than"),
        ((echo_engine, "--seed", "3"), 2, "--doctor measures no speed, so --seed has no effect"),
        ((tiny_engine,), 3, "holds no draft model"),
    ):
        assert doctor(*arguments) == code
        out, err = capfd.readouterr()
        assert says in err
        assert out == ""
    assert run_command(command, "resps-bench", ["--weights", "x"]) == 2
    assert "--weights is for --doctor" in capfd.readouterr().err
