"""resps-bench --doctor as a command, on a tiny pair: its output, its exit codes and its usage."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from export.doctor.template import OtherTemplate
from runtime.bench.cli import SICK, command
from runtime.console import run_command
from runtime.manifest.load import load_manifest


def doctor(engine: Path, *arguments: str) -> int:
    asked = ["--prompts", str(engine.parent / "asked.txt"), "--max-new-tokens", "40", "--threads", "1"]
    (engine.parent / "asked.txt").write_text("the cat sat\na dog on the log\nthe log\nthe cat and the dog\n")
    return run_command(command, "resps-bench", ["--doctor", "--engine-dir", str(engine), *asked, *arguments])


def test_a_config_that_was_edited_is_found(echo_engine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(load_manifest(echo_engine).rebuild)
    draft = Path(shutil.copytree(words[words.index("--draft-weights") + 1], tmp_path / "draft"))
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({**config, "norm_before_residual": False}))
    assert doctor(echo_engine, "--draft-weights", str(draft), "--json") == SICK
    data = json.loads(capfd.readouterr().out)
    assert data["findings"][0]["fault"] == "the residual of the draft's layer should be normed"
    assert 0 < data["levels"][0]["low"] < data["levels"][0]["share"] < 1


def test_the_other_template_is_tried(echo_engine: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    other = OtherTemplate("the chat template is not the checkpoint's own", "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    monkeypatch.setattr("export.doctor.run.other_template", lambda *_: other)
    assert doctor(echo_engine) == SICK
    shown = capfd.readouterr().out.splitlines()[-1]
    assert re.fullmatch(
        rf"{re.escape(other.why)}: guess 1 is right at 0\.\d\d with it, at 0\.\d\d with the model's — export from .*", shown
    )


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
