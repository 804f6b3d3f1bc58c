"""resps-bench --clients: the whole command on a toy engine, and its refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import runtime.bench.load.measure
import runtime.bench.load.serving
from runtime import Decoder
from runtime.bench.cli import command
from runtime.bench.load.figures import tabulate
from runtime.bench.load.prompts import choose
from runtime.bench.load.record import LoadMeasurement, LoadTurn, as_dict, from_dict
from runtime.bench.load.report import findings_of
from runtime.bench.load.serving import open_contenders
from runtime.bench.record import read
from runtime.bench.report import report
from runtime.console import run_command

WORDS = ("the cat sat", "a dog", "a log", "the log sat on a cat")


@pytest.fixture
def asked_file(tmp_path: Path) -> Path:
    lines = [{"turns": [words, "never asked"]} for words in (*WORDS, WORDS[0], "the cat " * 20, "the cat " * 400)]
    (tmp_path / "cats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "cats.jsonl"


def bench(engine: Path, *arguments: str | Path) -> int:
    return run_command(command, "resps-bench", ["--engine-dir", str(engine), "--max-new-tokens", "12", *map(str, arguments)])


def measured(engine: Path, file: Path, capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> LoadMeasurement:
    """What the command printed as JSON."""
    assert bench(engine, *arguments, "--json") == 0
    out, _ = capfd.readouterr()
    assert out.count("\n") == 1
    file.write_text(out)
    return from_dict(read(file), file)


def test_the_whole_command(echo_engine: Path, asked_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Measured, printed as JSON, read back: the same tables and report, and everything adds up."""
    page, file = tmp_path / "bench.html", tmp_path / "bench.json"
    arguments = ("--prompts", asked_file, "--clients", "1,3", "--rate", "200", "--replicas", "1", "--replicas", "2", "--turns", "2")
    run = measured(echo_engine, file, capfd, *arguments, "--max-prompt-tokens", "30", "--report", page)
    table = tabulate(run)
    assert json.loads(json.dumps(as_dict(run, table))) == json.loads(file.read_text())
    assert [(each.name, each.replicas, each.lanes) for each in run.contenders] == [("1 replica", 1, 1), ("2 replicas", 2, 1)]
    assert [each.name for each in run.arrivals] == ["1 client", "3 clients", "200 requests/s"]
    assert [answer.question for answer in run.plain] == [0, 1, 2, 3]
    assert (run.dropped, [each.question for each in run.skipped], run.interrupted) == (2, [6], False)  # repeated; long; too long for all
    assert len(run.turns) == 2 * 3 * 2
    assert [turn.contender for turn in run.turns[:2]] == [
        turn.contender for turn in reversed(run.turns[6:8])
    ]  # they take turns in going first
    for turn in run.turns:
        assert turn.passes == sum(answer.cycles for answer in turn.answers)  # one lane: a pass a round
        assert turn.rows > turn.passes
        for answer, plain in zip(turn.answers, run.plain, strict=True):
            assert answer.tokens == plain.tokens
            assert len(answer.tokens) == 1 + sum(answer.counts)
            assert len(answer.counts) == answer.cycles
            assert min(answer.first_token, *answer.waits) > 0
    assert len({tuple(answer.due for answer in turn.answers) for turn in run.turns if turn.arrivals.rate}) > 1
    assert page.read_text(encoding="utf-8") == report(findings_of(run))

    assert run_command(command, "resps-bench", ["--from", str(file), "--report", str(tmp_path / "again.html")]) == 0
    out, err = capfd.readouterr()
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    assert err == ""
    assert out.startswith("lossless: 0 of ")
    for text in ("3 clients", "200 requests/s", "2 replicas", "inter-token", "rows/pass"):
        assert text in out


def test_sampled_answers_have_a_seed_each_and_policies_are_compared(
    echo_engine: Path, asked_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("--temperature", "1", "--policies", "none", "--tree", "7,4,2", "--clients", "2", "--turns", "1", "--questions", "2")
    run = measured(echo_engine, tmp_path / "x.json", capfd, "--prompts", asked_file, *options)
    assert [each.name for each in run.contenders] == ["1 replica, none", "1 replica, 7,4,2"]
    assert [turn.rows > turn.passes for turn in run.turns] == [False, True]
    assert all(cell.differing_tokens == 0 for cell in tabulate(run).cells)


def test_lanes_share_passes(echo_engine: Path, asked_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--lanes", "1", "--lanes", "3", "--clients", "3", "--turns", "1", "--questions", "3", "--policies", "none")
    run = measured(echo_engine, tmp_path / "x.json", capfd, "--prompts", asked_file, *options)
    assert [each.lanes for each in run.contenders] == [1, 3]
    one, three = tabulate(run).cells
    assert one.rows_per_pass == 1
    assert three.rows_per_pass is not None
    assert three.rows_per_pass > 1  # how much more depends on when the threads of the clients run
    assert all(cell.differing_tokens == 0 for cell in tabulate(run).cells)


def test_contenders_with_equal_threads_share_decoders_and_all_are_closed(echo_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Decoder] = []
    original = runtime.bench.load.serving.open_decoder

    def noted(*arguments: Any) -> Decoder:
        opened.append(original(*arguments))
        return opened[-1]

    monkeypatch.setattr(runtime.bench.load.serving, "open_decoder", noted)
    given = {"drafts": ("eagle", "ngram"), "lanes": (), "replicas": (2, 3), "threads": None, "backend": None, "device": None}
    with ExitStack() as stack:
        contenders = open_contenders(echo_engine, given, [], [], stack)
        assert [each.record.name for each in contenders] == [
            "2 replicas, eagle", "3 replicas, eagle", "2 replicas, ngram", "3 replicas, ngram",
        ]  # fmt: skip
        assert [len(each.decoders) for each in contenders] == [2, 3, 2, 3]
        assert list(contenders[0].decoders) == list(contenders[1].decoders[:2])
        assert len(opened) == 2
        assert {each.record.threads for each in contenders} == {1}
    assert all(decoder._closed for each in contenders for decoder in each.decoders)


def test_wrong_tokens_are_found(
    echo_engine: Path, asked_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = runtime.bench.load.measure._ask

    def ask(*arguments: Any) -> Any:
        answer = original(*arguments)
        object.__setattr__(answer, "tokens", (*answer.tokens[:-1], answer.tokens[-1] + 1))
        return answer

    monkeypatch.setattr(runtime.bench.load.measure, "_ask", ask)
    assert bench(echo_engine, "--prompts", asked_file, "--clients", "2", "--questions", "2", "--turns", "1") == 0
    assert capfd.readouterr().out.startswith(
        "NOT LOSSLESS: 1 replica with 2 clients gives other answers than plain decoding: 2 of 2 answers"
    )


def test_interruption_shows_the_turns_that_were_finished(
    echo_engine: Path, asked_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original, count = runtime.bench.load.measure._turn, 0

    def turn(*arguments: Any) -> LoadTurn:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(runtime.bench.load.measure, "_turn", turn)
    arguments = ("--prompts", asked_file, "--clients", "1,2", "--questions", "2")
    assert bench(echo_engine, *arguments) == 130
    out, err = capfd.readouterr()
    assert err.endswith("resps-bench: interrupted\n")
    assert "INTERRUPTED: these are the turns that were finished" in out
    assert ("| 1 client " in out, "| 2 clients" in out) == (True, False)
    count = 1
    assert bench(echo_engine, *arguments) == 130
    assert capfd.readouterr().out == ""


def test_bad_usage_is_one_line(echo_engine: Path, asked_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cases: list[tuple[Sequence[str | Path], int, str]] = [
        (["--clients", "two"], 2, "'two' is not numbers with commas between them"),
        (["--clients", "1,"], 2, "'1,' is not numbers"),
        (["--clients", "1,0"], 2, "'1,0' has a number below 1"),
        (["--rate", "inf"], 2, "'inf' has a number below 0.001 or without end"),
        (["--rate", "nan"], 2, "'nan' has a number"),
        (["--rate", "0"], 2, "'0' has a number below 0.001"),
        (["--replicas", "2"], 2, "--replicas is for several clients — give --clients or --rate too"),
        (["--lanes", "2"], 2, "--lanes is for several clients"),
        (["--turns", "2"], 2, "--turns is for several clients"),
        (["--max-prompt-tokens", "9"], 2, "--max-prompt-tokens is for several clients"),
        (["--from", asked_file, "--clients", "1"], 2, "--from measures nothing, so --clients has no effect"),
        (["--clients", "1", "--replicas", "0"], 2, "--replicas"),
        (["--clients", "1", "--temperature", "-1"], 2, "temperature"),
        (["--clients", "1", "--policies", "best"], 2, "unknown policy 'best'"),
        (["--clients", "1", "--tree", "65,8,8"], 2, "larger than the engine allows"),
        (["--clients", "1,9", "--prompts", asked_file], 2, "9 clients need at least as many questions, there are 5"),
        (["--clients", "1", "--prompts", asked_file, "--max-prompt-tokens", "1"], 2, "those that fit have more than 1 tokens"),
    ]
    for arguments, code, says in cases:
        assert bench(echo_engine, *arguments) == code, arguments
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1), (arguments, err)
        assert says in err, (arguments, err)


def test_the_limit_counts_questions_that_fit(asked_file: Path, eagle_decoder: Decoder) -> None:
    chosen, skipped, dropped = choose([asked_file], 5, 100, eagle_decoder)
    assert [each.number for each in chosen] == [0, 1, 2, 3, 5]  # 4 repeats 0
    assert (skipped, dropped) == ([], 1)
    chosen, skipped, _ = choose([asked_file], 9, None, eagle_decoder)
    assert [each.number for each in chosen] == [0, 1, 2, 3, 5]
    assert [(each.question, "too" in each.reason or "tokens" in each.reason) for each in skipped] == [(6, True)]
    assert list(chosen[1].tokens) == eagle_decoder.encode([{"role": "user", "content": "a dog"}])
