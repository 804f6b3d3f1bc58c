"""The command resps-tune: what it installs, what it leaves alone, its prompts and its report."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import export.tuning.cli
import export.tuning.replay.record
import export.tuning.tune
from export.tuning.cli import command
from export.tuning.errors import TuningError
from export.tuning.learning.curriculum import RECIPES
from export.tuning.prompts import read_prompts
from policy import PLAIN, FixedPolicy
from runtime import Decoder, SamplingParams
from runtime.backends.cpu.processor import processor_name
from runtime.console import run_command
from runtime.manifest.believed import FILE_NAME as HASHES
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import load_manifest
from runtime.policies.registry import main_policies
from tests.support.eagle_engines import prompt_of
from tests.support.tunings import edit_tuning


def tune(directory: Path, *arguments: str) -> int:
    base = ["--engine-dir", str(directory), "--prompts", str(directory.parent / "prompts.txt"), "--minutes", "0.1"]
    return run_command(command, "resps-tune", [*base, *arguments])


def test_tuned_policy_is_installed_and_used(engine_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, page = load_manifest(engine_dir), engine_dir.parent / "page.html"
    assert before.tuning is None
    assert tune(engine_dir, "--threads", "1", "--minutes", "0.3", "--json", "--report", str(page)) == 0
    expect_report(page.read_text())
    printed = json.loads(capfd.readouterr().out)
    after = load_manifest(engine_dir)
    assert after.tuning is not None
    assert json.loads(json.dumps(dataclasses.asdict(after.tuning))) == printed
    assert dataclasses.replace(after, tuning=None) == before
    assert (after.tuning.machine, after.tuning.threads) == (processor_name(), 1)
    assert after.tuning.policy in main_policies()
    assert after.tuning.latency.lanes is not None
    assert after.tuning.latency.lanes.lanes[-1] == 4  # of one core
    assert set(after.tuning.ratios) == set(main_policies()) - {"table"}  # with one lane it is a fixed tree
    assert len(after.tuning.table) == 4
    assert set(after.tuning.learned) == {"resps", "ltd", "resps+ltd"}
    with Decoder(engine_dir, threads=1) as decoder:
        plain = decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=60), policy=FixedPolicy(PLAIN)).tokens
        assert decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=60)).tokens == plain
        for name in main_policies():
            assert decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=60), policy=name).tokens == plain, name
    assert {path.name for path in engine_dir.glob("tuned-*")} == set(after.tuning.files)
    # A tuning that is refused when loaded is still replaced by the next one, and its files are removed.
    edit_tuning(engine_dir, lambda t: t["learned"]["resps"]["slow"]["net"].update(inputs_version=2))
    assert tune(engine_dir, "--threads", "1", "--minutes", "0.3", "--policy", "ltd") == 0
    replaced = load_manifest(engine_dir)
    assert replaced.tuning is not None
    assert set(replaced.tuning.learned) == {"ltd"}
    assert {path.name for path in engine_dir.glob("tuned-*")} == set(replaced.tuning.files)


def test_recorded_answers_are_reused(engine_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert tune(engine_dir, "--dry-run", "--policy", "cost-model") == 0
    assert load_manifest(engine_dir).tuning is None

    def never(*_: Any) -> None:
        raise AssertionError("recorded again")

    monkeypatch.setattr(export.tuning.replay.record, "_record_answers", never)
    assert tune(engine_dir, "--dry-run", "--policy", "resps") == 0
    assert "by the clock" in capfd.readouterr().out
    assert not list(engine_dir.glob("tuned-*"))


def test_interruption_changes_nothing(engine_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = (engine_dir / FILE_NAME).read_bytes()

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export.tuning.tune, "confirm", interrupted)
    assert tune(engine_dir, "--policy", "cost-model") == 130
    assert (engine_dir / FILE_NAME).read_bytes() == manifest
    assert {file.name for file in engine_dir.glob(".*")} <= {HASHES}
    assert capfd.readouterr().err.splitlines()[-1] == "resps-tune: interrupted"


def test_nothing_is_trained_in_the_time_that_confirming_needs(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(export.tuning.tune, "confirming_seconds", lambda *_: 60.0)
    assert tune(engine_dir, "--policy", "ltd") == 0
    assert "there was no time to train ltd — give more --minutes" in caplog.text
    tuning = load_manifest(engine_dir).tuning
    assert tuning is not None
    assert not tuning.learned
    assert set(tuning.ratios) == {"none", "fixed", "cost-model"}


def test_a_gpu_is_simulated_and_nothing_installed(engine_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = (engine_dir / FILE_NAME).read_bytes()
    assert tune(engine_dir, "--simulate", "h200-70b-fp8") == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "simulated, not measured: 1x H200, Llama-3.3-70B, fp8"
    assert [line.split()[0] for line in lines[3:8]] == ["plain", "default", "fixed", "table", "row"]
    assert lines[-1].endswith("(simulated)")
    assert (engine_dir / FILE_NAME).read_bytes() == manifest
    assert tune(engine_dir, "--simulate", "h200-8b", "--json") == 2
    assert "leave --report, --json and --policy out" in capfd.readouterr().err
    assert tune(engine_dir, "--simulate", "h9000") == 2
    assert "there is no world h9000 — choose from h100-70b, h100-70b-fp8, h100-8b" in capfd.readouterr().err


def test_all_trains_every_recipe(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def interrupted(engine: Any, decoder: Any, prompts: Any, minutes: Any, learned: tuple[str, ...], *_: Any) -> None:
        names.extend(learned)
        raise KeyboardInterrupt

    monkeypatch.setattr(export.tuning.cli, "_tune", interrupted)
    assert tune(engine_dir, "--policy", "all") == 130
    assert sorted(names) == sorted(RECIPES)


def test_too_few_prompts(engine_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (engine_dir.parent / "prompts.txt").write_text("one\ntwo\n")
    assert tune(engine_dir) == 1
    assert capfd.readouterr().err == "resps-tune: 2 prompts are too few, tuning needs 5 — give more with --prompts\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [("{broken\n", "line 1: no prompt and no turns"), ('plain\n{"turns": []}\n', "line 2"), ('{"prompt": 3}\n', "line 1")],
)
def test_prompts_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p").write_text(text)
    with pytest.raises(TuningError, match=message):
        read_prompts(tmp_path / "p")


def test_prompts_of_every_form(tmp_path: Path) -> None:
    (tmp_path / "p").write_text('{"prompt": "a"}\n\n{"turns": ["b", "c"]}\nd e\n')
    assert read_prompts(tmp_path / "p") == ["a", "b", "d e"]
    assert len(read_prompts(None)) > 40


def expect_report(text: str) -> None:
    """Everything is shown, in one file that needs no other."""
    for words in ("plain decoding", "cost model", "Re-SpS and LTD", "oracle", "regret", "What a round costs here", "1,0,0"):
        assert words in text, words
    assert text.count("<svg") == 7
    for words in (
        "Several requests at a time",
        "clairvoyant",
        "Who got the rows",
        "<th>1 lane</th>",
        "4 lanes",
        "the table",
        "For sampled requests",
        "interval",
    ):
        assert words in text, words
    assert not re.search(r"<script|<link|src=|@import", text)


def test_missing_directory_of_the_report_is_an_error(engine_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tune(engine_dir, "--report", str(engine_dir.parent / "no" / "page.html"), "--policy", "cost-model") == 1
    assert "no directory" in capfd.readouterr().err
    assert load_manifest(engine_dir).tuning is None


def test_what_cannot_be_written_is_said_before_anything_is_measured(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK or Path(path) != engine_dir)
    monkeypatch.setattr(export.tuning.cli, "_tune", None)
    assert tune(engine_dir) == 1
    assert (
        capfd.readouterr().err
        == f"resps-tune: cannot write to {engine_dir}: no permission — copy the engine directory, or tune with --dry-run\n"
    )
    assert tune(engine_dir, "--report", str(engine_dir / "page.html"), "--dry-run") == 1
    assert f"cannot write {engine_dir / 'page.html'}: no permission — choose another place with --report" in capfd.readouterr().err


def test_a_tuning_is_installed_whatever_becomes_of_its_report(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("export.tuning.report.write_report", interrupted)
    assert tune(engine_dir, "--policy", "cost-model", "--report", str(engine_dir.parent / "page.html")) == 130
    assert load_manifest(engine_dir).tuning is not None
