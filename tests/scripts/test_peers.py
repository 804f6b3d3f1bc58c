"""scripts/peers without the other engines: comparing, counting, choosing contenders, running their processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from runtime.errors import BenchError, PromptError
from scripts.peers.__main__ import command
from scripts.peers.compare import closeness, first_difference, margin, same_prefix
from scripts.peers.contenders import PEERS, PRECISIONS, PeerContender, chosen, own_contenders
from scripts.peers.environments import ENVIRONMENTS, TORCH, PeerUnavailable, last_line, refuse_cuda
from scripts.peers.figures import best_peers, paired_ratio, reference_name, rows
from scripts.peers.models.files import CONVERTER, FORMATS
from scripts.peers.protocol import PeerAnswer, PeerJob, Stopwatch
from scripts.peers.questions import PeerQuestion, read_questions
from scripts.peers.quiet import cpu_seconds, wait_for_quiet
from scripts.peers.tables import HEADS, cells, markdown, page
from scripts.peers.turns import Bench, Turn
from scripts.peers.worker import work

STOP = [2]
OWN = ["resps-fp32", "resps-fp32-default", "resps-fp32-tuned"]


def answer(rate: float, tokens: list[int], first: float = 0.5) -> PeerAnswer:
    return PeerAnswer(tokens, first, len(tokens) / rate, len(tokens), len(tokens))


def turn(*answers: PeerAnswer, load: float = 1.0, peak: float = 100.0) -> Turn:
    return Turn(load, peak, 0.25, list(answers))


BASE = PeerContender("transformers-fp32", "transformers", "fp32", "transformers-fp32", "transformers")
FAST = PeerContender("genai-fp32", "genai", "fp32", "genai-fp32", "onnxruntime-genai")
OURS = PeerContender("resps-fp32", "resps", "fp32", "resps-fp32")
TREE = PeerContender("resps-fp32-default", "resps", "fp32", "resps-fp32", note="a | tree")
INT8 = PeerContender("resps-int8", "resps", "int8", "resps-int8")
INT8_TREE = PeerContender("resps-int8-default", "resps", "int8", "resps-int8")
QUESTIONS = [PeerQuestion("a:0", [1, 5, 6]), PeerQuestion("a:1", [1, 7])]


@pytest.fixture
def turns() -> dict[str, list[Turn]]:
    """Two turns of two questions; the machine is half as fast in the second."""
    long, short = [3, 4, 5, 6], [8, 9]

    def both(fast: float, tokens: tuple[list[int], list[int]] = (long, short)) -> list[Turn]:
        return [turn(*(answer(fast * speed, text) for text in tokens)) for speed in (1.0, 0.5)]

    return {
        BASE.name: both(10.0),
        FAST.name: both(20.0),
        OURS.name: both(22.0),
        TREE.name: both(30.0, (long, [8, 8])),
        INT8.name: both(40.0, ([3, 4, 1, 1], short)),
        INT8_TREE.name: both(50.0, ([3, 4, 1, 1], short)),
    }


CONTENDERS = [BASE, FAST, OURS, TREE, INT8, INT8_TREE]


def test_ratios_pair_the_same_question_in_the_same_turn(turns: dict[str, list[Turn]]) -> None:
    by_name = {row.contender.name: row for row in rows(CONTENDERS, QUESTIONS, turns, {})}
    assert by_name[OURS.name].to_base == pytest.approx(2.2)  # in both turns, however fast the machine was
    assert by_name[OURS.name].to_peer == pytest.approx(1.1)
    assert by_name[TREE.name].best_peer == FAST.name
    assert by_name[INT8.name].best_peer is by_name[INT8.name].to_peer is None
    assert (by_name[OURS.name].rate, by_name[OURS.name].lowest, by_name[OURS.name].highest) == pytest.approx((16.5, 11.0, 22.0))
    assert by_name[OURS.name].prefill_rate == pytest.approx(5 / 1.0)
    assert by_name[OURS.name].first_ms == pytest.approx(500.0)


def test_text_is_compared_with_the_plain_contender(turns: dict[str, list[Turn]]) -> None:
    by_name = {row.contender.name: row for row in rows(CONTENDERS, QUESTIONS, turns, {})}
    assert reference_name(CONTENDERS, turns) == OURS.name
    assert (by_name[BASE.name].same, by_name[BASE.name].compared) == (4, 4)
    assert by_name[TREE.name].same == 2  # one of its two answers differs, in both turns
    assert by_name[INT8.name].same is None  # int8 need not write what float32 writes
    assert by_name[INT8_TREE.name].same == 4  # but speculation must not change it
    assert by_name[INT8.name].prefix == pytest.approx((0.5 + 1.0) / 2)


def test_best_peer_is_never_ours_and_needs_a_turn(turns: dict[str, list[Turn]]) -> None:
    assert best_peers(CONTENDERS, turns) == {"fp32": FAST.name}
    assert best_peers(CONTENDERS, {OURS.name: turns[OURS.name]}) == {}
    assert reference_name([INT8], turns) is None


def test_answer_of_one_token_has_no_rate() -> None:
    short = PeerAnswer([], 0.1, 0.0, 0, 0)
    assert short.rate is None
    assert paired_ratio([turn(short)], [turn(answer(5.0, [1, 1]))]) is None


def test_stopwatch_counts_tokens_after_the_first() -> None:
    stopwatch = Stopwatch(started=10.0)
    stopwatch.times, stopwatch.tokens = [(10.5, 1), (11.0, 2), (12.5, 1)], [4, 5, 6, 2]
    assert stopwatch.answer(STOP) == PeerAnswer([4, 5, 6], 0.5, 2.0, 3, 2)
    with pytest.raises(ValueError, match="no token"):
        Stopwatch().answer(STOP)


@pytest.mark.parametrize(
    ("mine", "other", "index", "share"),
    [([1, 2], [1, 2], None, 1.0), ([1, 2, 3], [1, 9, 3], 1, 1 / 3), ([1, 2], [1, 2, 3, 4], 2, 0.5), ([], [], None, 1.0), ([], [1], 0, 0.0)],
)
def test_first_difference_and_common_prefix(mine: list[int], other: list[int], index: int | None, share: float) -> None:
    assert first_difference(mine, other) == index
    assert same_prefix(mine, other) == pytest.approx(share)


def test_closeness_is_the_divergence_from_the_reference() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    reference, other = np.log([p, p]).astype(np.float32) + 3.0, np.log([p, q]).astype(np.float32)
    result = closeness([(reference, other)])
    assert result.mean_kl == pytest.approx(0.5 * (0.5 * np.log(2) - 0.25 * np.log(2)), abs=1e-6)
    assert (result.agreement, result.positions) == (0.5, 2)
    with pytest.raises(ValueError, match="shape"):
        closeness([(reference, other[:1])])
    assert margin(np.array([1.0, 3.5, 2.0]), (2, 1)) == pytest.approx(1.5)


def test_contenders_are_valid() -> None:
    names = [contender.name for contender in PEERS]
    assert len(set(names)) == len(names)
    for contender in PEERS:
        assert contender.precision in PRECISIONS
        assert contender.plain in names
        assert not next(other for other in PEERS if other.name == contender.plain).speculates
        assert contender.environment in ENVIRONMENTS
        assert set(contender.formats.values()) <= set(FORMATS)
        assert (Path(__file__).parents[2] / "scripts" / "peers" / "engines" / f"{contender.engine}.py").is_file()
    assert CONVERTER.is_file()
    for environment in ENVIRONMENTS.values():
        assert all("==" in pin for pin in environment.pins)


def test_contenders_are_chosen_by_name_or_prefix() -> None:
    assert [contender.name for contender in chosen(CONTENDERS, "resps-int8*,genai-fp32,resps-int8")] == [
        INT8.name,
        INT8_TREE.name,
        FAST.name,
    ]
    assert chosen(CONTENDERS, None) == CONTENDERS
    with pytest.raises(BenchError, match="no contender 'vllm'"):
        chosen(CONTENDERS, "vllm")


def test_cuda_is_refused_before_it_is_downloaded() -> None:
    def plan(*names: str) -> str:
        return "Looking\n" + json.dumps({"install": [{"metadata": {"name": name}} for name in names]})

    refuse_cuda(plan("torch", "sympy"))
    with pytest.raises(PeerUnavailable, match=TORCH):
        refuse_cuda(plan("torch", "nvidia-cublas-cu12"))
    assert last_line("first\nwhy\n\n[ERROR] BlockAllocator leaked blocks\n") == "why"


def test_table_shows_every_column(turns: dict[str, list[Turn]]) -> None:
    table = rows(CONTENDERS, QUESTIONS, turns, {INT8.name: closeness([(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))])})
    assert all(len(cells(row)) == len(HEADS) for row in table)
    text = markdown("Title", table, ["vllm: not here. No <wheel>."])
    assert "| 2.20x | 1.10x |" in text
    assert text.count("\n|") == len(table) + 2
    assert "&lt;wheel&gt;" in page("Title", table, ["No <wheel>."])


def test_finished_turn_is_not_run_again_but_another_job_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[PeerJob] = []

    def run(self: Bench, contender: PeerContender, job: PeerJob, name: str) -> dict[str, object]:
        ran.append(job)
        return {
            "load_seconds": 1.0,
            "peak_mib": 2.0,
            "answers": [{"tokens": [3], "first_seconds": 1, "decode_seconds": 1, "decoded": 1, "arrivals": 1}],
        }

    monkeypatch.setattr(Bench, "run", run)
    bench = Bench(tmp_path, QUESTIONS, STOP, new_tokens=8, threads=2)
    first = bench.turn(OURS, {}, 0)
    assert bench.turn(OURS, {}, 0) == first
    assert first.others >= 0
    assert len(ran) == 1
    bench.turn(OURS, {}, 1)
    Bench(tmp_path, QUESTIONS, STOP, new_tokens=9, threads=2).turn(OURS, {}, 0)
    assert [job.new_tokens for job in ran] == [8, 8, 9]


def test_disturbed_turns_are_repeated_and_the_quietest_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, load_times = iter([0.9, 0.4, 0.7]), iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(Bench, "run", lambda *_: {"load_seconds": next(load_times), "peak_mib": 2.0, "answers": []})
    monkeypatch.setattr("scripts.peers.turns.wait_for_quiet", lambda *_: True)
    monkeypatch.setattr("scripts.peers.turns.Load.others", lambda _: next(loads))
    bench = Bench(tmp_path, QUESTIONS, STOP, 8, 2, quiet=0.2)
    assert bench.turn(OURS, {}, 0) == Turn(2.0, 2.0, 0.4, [])
    loads, load_times = iter([0.9]), iter([1.0])
    monkeypatch.setattr("scripts.peers.turns.wait_for_quiet", lambda *_: False)
    assert bench.turn(OURS, {}, 1) == Turn(1.0, 2.0, 0.9, [])  # if the machine never becomes quiet, it waits only once


def test_waiting_for_a_quiet_machine_ends() -> None:
    loads = iter([1.5, 0.6, 0.1])
    assert wait_for_quiet(0.2, 60, lambda: next(loads))
    assert next(loads, None) is None
    assert not wait_for_quiet(0.2, 0, lambda: 1.5)
    ticks = os.sysconf("SC_CLK_TCK")
    assert cpu_seconds(f"cpu  {ticks} 0 {ticks} 999 99 0 0 {ticks} 0 0\ncpu0 1\n") == 3


def test_failed_process_is_reported_in_one_line(tmp_path: Path) -> None:
    bench = Bench(tmp_path, QUESTIONS, STOP, new_tokens=8, threads=2)
    with pytest.raises(PeerUnavailable, match=r"resps-fp32 failed: runtime\.errors\.EngineDirError: .*nowhere"):
        bench.turn(OURS, {"engine_dir": str(tmp_path / "nowhere"), "policy": "none"}, 0)


def test_own_engine_gives_text_and_logits_that_agree(demo_engine: Callable[[str], Path], tmp_path: Path) -> None:
    directory = demo_engine("fp32")
    prompts = [[1, 4093, 198, 4898, 314, 260, 6376, 4461, 47, 2, 198, 1, 520, 9531, 198]]
    job = PeerJob("resps", {"engine_dir": str(directory), "policy": "default"}, prompts, STOP, 12, 2)
    result = work(job)
    tokens = result["answers"][0]["tokens"]
    assert len(tokens) == 12
    assert result["peak_mib"] > 100
    options = {"engine_dir": str(directory), "policy": "none"}
    work(PeerJob("resps", options, prompts, STOP, 12, 2, answers=[tokens], logits_dir=str(tmp_path)))
    assert np.load(tmp_path / "0.npy").argmax(axis=-1).tolist() == tokens


def test_questions_are_rendered_chats_and_wrong_ones_are_refused(demo_engine: Callable[[str], Path], tmp_path: Path) -> None:
    directory, good, bad = demo_engine("fp32"), tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"turns": ["Why?", "And then?"]}\n{"turns": ["How?"]}\n')
    (question,), stop = read_questions(directory, [good], 1)
    assert (question.name, question.tokens[0], stop) == ("good:0", 1, [0, *STOP, 4])  # as llama.cpp reads this file
    assert len(read_questions(directory, [], 3)[0]) == 3
    bad.write_text('{"turns": ["Why?"]}\n{"turn": 1}\n')
    with pytest.raises(PromptError, match=r"bad\.jsonl, line 2"):
        read_questions(directory, [bad], 2)
    done = CliRunner().invoke(command, ["--engine-dir", str(directory), "--work", str(tmp_path), "--report", "table.pdf"])
    assert isinstance(done.exception, BenchError)
    assert ".md or .html" in str(done.exception)


def test_contenders_are_listed(demo_engine: Callable[[str], Path], tmp_path: Path) -> None:
    arguments = ["--engine-dir", str(demo_engine("fp32")), "--work", str(tmp_path), "--contenders", "resps*,genai-int4", "--list"]
    done = CliRunner().invoke(command, arguments)
    assert [line.split(":")[0] for line in done.output.splitlines()] == [
        "resps-fp32",
        "resps-fp32-default",
        "resps-fp32-tuned",
        "genai-int4",
    ]


def test_own_contenders_follow_the_directories(demo_engine: Callable[[str], Path]) -> None:
    directory = demo_engine("fp32")
    names = [contender.name for contender in own_contenders([directory])]
    assert names == OWN  # the tuning comes with the draft
    assert {contender.plain for contender in own_contenders([directory])} == {"resps-fp32"}
    with pytest.raises(BenchError, match="one for each precision"):
        own_contenders([directory, directory])
