"""The whole resps-bench command: measuring, printing, reading back, errors."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import runtime.bench.measure
from export.tuning.install import install
from export.tuning.outcome import TuningResult
from export.tuning.tune import Split
from runtime import Decoder
from runtime.bench.cli import command
from runtime.bench.figures import tabulate
from runtime.bench.record import BASELINE, TurnRecord, as_dict, from_dict, read
from runtime.bench.report import findings_of, report
from runtime.console import run_command
from runtime.manifest.load import load_manifest
from tests.support.bench_answers import a_tuning, both, drawn


@pytest.fixture
def asked_file(tmp_path: Path) -> Path:
    lines = [{"turns": ["the cat sat", "a dog"]}, {"turns": ["a log"]}]
    (tmp_path / "cats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "dogs.txt").write_text("a dog sat on the log\n")
    return tmp_path / "cats.jsonl"


def bench(engine: Path, *arguments: str | Path) -> int:
    return run_command(command, "resps-bench", ["--engine-dir", str(engine), "--threads", "1", *map(str, arguments)])


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_the_whole_command(
    echo_engine: Path, asked_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], temperature: str
) -> None:
    """Measured, printed as JSON, read back: the same tables and report, and everything adds up."""
    again, page = tmp_path / "bench.json", tmp_path / "bench.html"
    arguments = ("--tree", "7,4,2", "--tree", "3,2,1", "--max-new-tokens", "24", "--temperature", temperature)
    assert bench(echo_engine, "--prompts", asked_file, asked_file.with_name("dogs.txt"), *arguments, "--json", "--report", page) == 0
    out, err = capfd.readouterr()
    assert (out.count("\n"), err) == (1, "")
    again.write_text(out)
    measurement = from_dict(read(again), again)
    table = tabulate(measurement)
    assert json.loads(json.dumps(as_dict(measurement, table))) == json.loads(out)
    assert measurement.sets == ["cats", "dogs"]
    assert [each.name for each in measurement.contenders] == [BASELINE, "7,4,2", "3,2,1"]
    assert (len(measurement.answers), measurement.skipped, measurement.interrupted) == (12, (), False)
    assert measurement.engine.id == load_manifest(echo_engine).engine_id
    for answer in measurement.answers:
        assert sum(answer.rounds.tokens) == answer.stats.new_tokens - 1 == len(answer.tokens) - 1
        assert sum(answer.rounds.nodes) == answer.stats.drafted + answer.stats.cycles
        assert sum(answer.rounds.accepted) == answer.stats.accepted
        assert sum(answer.rounds.waits) >= 0.9 * answer.stats.decode_seconds
        assert answer.first_token_seconds > answer.stats.prefill_seconds
    assert all(each.differing_tokens == 0 for each in table.pooled)
    assert table.pooled[1].tokens_per_cycle > 1.2  # type: ignore[operator]
    assert measurement.machine.peak_memory
    assert page.read_text(encoding="utf-8") == report(findings_of(measurement))

    assert run_command(command, "resps-bench", ["--from", str(again), "--report", str(tmp_path / "again.html")]) == 0
    out, err = capfd.readouterr()
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    assert err == ""
    assert out.startswith("lossless: 0 of ")
    for text in ("cats", "dogs", "mean", "7,4,2", "3,2,1", "first token", "peak"):
        assert text in out


def test_interruption_shows_what_there_is(
    echo_engine: Path, asked_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = runtime.bench.measure._ask
    count = 0

    def ask(*arguments: Any) -> tuple[TurnRecord, str]:
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(runtime.bench.measure, "_ask", ask)
    arguments = ("--prompts", asked_file, "--tree", "3,2,1", "--max-new-tokens", "9")
    assert bench(echo_engine, *arguments, "--report", tmp_path / "x.html") == 130
    out, err = capfd.readouterr()
    assert err == "resps-bench: interrupted\n"
    assert "INTERRUPTED" in out
    assert "2 turns of 1 sets" in out
    assert "INTERRUPTED" in (tmp_path / "x.html").read_text()
    count = 5
    assert bench(echo_engine, *arguments) == 130
    assert capfd.readouterr() == ("", "resps-bench: interrupted\n")


def test_bad_usage_is_one_line(echo_engine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jsonl").write_text("{}")
    (tmp_path / "long.txt").write_text("the cat " * 400)
    (tmp_path / "x.json").write_text("{}")
    cases: list[tuple[Sequence[str | Path], int, str]] = [
        (["--policies", "best"], 2, "unknown policy 'best' — choose from none, fixed"),
        (["--policies", ""], 2, "unknown policy ''"),
        (["--policies", "none,cost-model"], 3, "resps-tune"),
        (["--tree", "big"], 2, "NODES,DEPTH,WIDTH"),
        (["--tree", "65,8,8"], 2, "larger than the engine allows"),
        (["--temperature", "-1"], 2, "temperature"),
        (["--questions", "0"], 2, "questions"),
        (["--draft", "eagle", "--draft", "best"], 2, "'best' is not one of"),
        (["--prompts", tmp_path / "nowhere"], 2, "nowhere"),
        (["--prompts", tmp_path / "bad.jsonl"], 2, "line 1"),
        (["--prompts", tmp_path / "long.txt"], 2, "none of the 1 questions can be asked: the prompt has"),
        (["--report", tmp_path / "nowhere" / "x.html"], 2, "there is no folder"),
        (["--from", tmp_path / "x.json"], 2, "--engine-dir"),
    ]
    for arguments, code, says in cases:
        assert bench(echo_engine, *arguments) == code, arguments
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1), arguments
        assert says in err, arguments
    assert bench(tmp_path / "nothing") == 3
    assert "resps-export" in capfd.readouterr().err


def test_report_that_cannot_be_written_costs_no_figures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text(json.dumps(as_dict(*both(drawn(0, questions=2)))))
    assert run_command(command, "resps-bench", ["--from", str(tmp_path / "x.json"), "--report", "/dev/full"]) == 1
    out, err = capfd.readouterr()
    assert "## Speed" in out
    assert "No space left" in err


def edited(change: Callable[[dict[str, Any]], object]) -> str:
    measurement, table = both(drawn(0, questions=2))
    data = json.loads(json.dumps(as_dict(measurement, table)))
    change(data)
    return json.dumps(data)


BROKEN: Mapping[str, Callable[[], str]] = {
    "cannot read": lambda: "{",
    "is no measurement": lambda: "[]",
    "of schema 2": lambda: edited(lambda data: data.update(schema=1)),
    "wrong keys: machine": lambda: edited(lambda data: data.pop("machine")),
    "tokens_per_cycle": lambda: edited(lambda data: data["answers"][0]["stats"].update(tokens_per_cycle="fast")),
    "not every contender answered": lambda: edited(lambda data: data["answers"].pop()),
    "several lengths": lambda: edited(lambda data: data["answers"][0]["rounds"]["waits"].append(1.0)),
    "every turn": lambda: edited(lambda data: data["answers"].clear()),
}


@pytest.mark.parametrize("says", BROKEN)
def test_broken_measurements_are_refused(tmp_path: Path, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text(BROKEN[says]())
    assert run_command(command, "resps-bench", ["--from", str(tmp_path / "x.json")]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_without_matplotlib_it_says_so_before_it_measures(
    echo_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr("runtime.bench.svg.find_spec", lambda name: None if name == "matplotlib" else original(name))
    monkeypatch.setattr(Decoder, "__init__", lambda *_, **__: pytest.fail("loaded the engine"))
    assert bench(echo_engine, "--report", tmp_path / "x.html") == 2
    assert capfd.readouterr() == ("", "resps-bench: a report needs matplotlib — pip install 'resps[bench]'\n")


def test_tuned_policies_are_defaults_of_the_command(
    echo_engine: Path, asked_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tuned = tmp_path / "engine"
    shutil.copytree(echo_engine, tuned)
    install(
        tuned, load_manifest(tuned), TuningResult(a_tuning(engine=load_manifest(tuned).engine_id, threads=1), {}, {}, (), Split([], [], []))
    )
    assert bench(tuned, "--prompts", asked_file, "--max-new-tokens", "12") == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")][:5] == [
        "contender", "none", "5,3,2", "fixed (6,2,3)", "cost-model",
    ]  # fmt: skip
    assert out.startswith("lossless")


def test_drafts_are_compared_in_one_run(
    echo_engine: Path, asked_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Tables and JSON name the draft; every Decoder is closed; a draft that is given twice takes part once."""
    closed: list[str] = []
    close = Decoder.close

    def noted(self: Decoder) -> None:
        closed.append(self.draft)
        close(self)

    monkeypatch.setattr(Decoder, "close", noted)
    drafts = [part for draft in ("eagle", "eagle+ngram", "eagle") for part in ("--draft", draft)]
    arguments = ("--prompts", asked_file, "--max-new-tokens", "12", *drafts)
    assert bench(echo_engine, *arguments, "--policies", "fixed", "--tree", "3,2,1", "--json") == 0
    (tmp_path / "bench.json").write_text(capfd.readouterr().out)
    assert sorted(closed) == ["eagle", "eagle+ngram"]
    measurement = from_dict(read(tmp_path / "bench.json"), tmp_path)
    assert measurement.engine.drafts == ("eagle", "eagle+ngram")
    assert [(each.name, each.draft) for each in measurement.contenders] == [
        (BASELINE, "none"),
        ("eagle fixed", "eagle"),
        ("eagle 3,2,1", "eagle"),
        ("eagle+ngram fixed", "eagle+ngram"),
        ("eagle+ngram 3,2,1", "eagle+ngram"),
    ]
    assert all(each.differing_tokens == 0 for each in tabulate(measurement).pooled)
    assert run_command(command, "resps-bench", ["--from", str(tmp_path / "bench.json")]) == 0
    out, _ = capfd.readouterr()
    assert "draft eagle and eagle+ngram (" in out
    assert "| eagle+ngram fixed (5,3,2) |" in out
    assert bench(echo_engine, "--draft", "eagle", "--draft", "ngram", "--tree", "65,8,8") == 2  # found after both were loaded
    assert sorted(closed) == ["eagle", "eagle", "eagle+ngram", "ngram"]
