"""scripts/peers with several clients: the closed loop, contenders, tables, the command."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from runtime.bench.load.figures import table_of
from runtime.errors import BenchError
from scripts.peers import closed_loop as loop_module
from scripts.peers.__main__ import command, take_turns
from scripts.peers.clients import expected, findings_of, load_turns, text_of
from scripts.peers.closed_loop import closed_loop, request_of
from scripts.peers.contenders import BATCH_PEERS, PRECISIONS, PeerContender, own_batch_contenders
from scripts.peers.environments import ENVIRONMENTS, PeerUnavailable
from scripts.peers.models.files import FORMATS
from scripts.peers.protocol import PeerJob, PeerRequest, Stopwatch
from scripts.peers.questions import PeerQuestion
from scripts.peers.turns import ROOT, Bench, LoopTurn
from scripts.peers.worker import answer_clients
from tests.support.peer_engines import STOP, answer

PROMPTS = [[1, 5, 6], [1, 7], [1, 9, 9, 9], [1, 11], [1, 3, 4]]
ANSWERS = [answer(prompt, 6) for prompt in PROMPTS]  # of six tokens; the third ends with a stop token after three


class FakeBatch:
    """Delivers a token of every running request a step; notes what it is asked."""

    def __init__(self) -> None:
        self.left: dict[int, list[int]] = {}
        self.at_once: list[int] = []
        self.forgotten = 0

    def forget(self) -> None:
        assert not self.left
        self.forgotten += 1

    def add(self, number: int, prompt: list[int], new_tokens: int) -> None:
        self.left[number] = answer(prompt, new_tokens)

    def step(self) -> list[tuple[int, list[int], bool]]:
        self.at_once.append(len(self.left))
        came = []
        for number, tokens in list(self.left.items()):
            came.append((number, [tokens.pop(0)], not tokens))
            if not tokens:
                del self.left[number]
        return came


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_closed_loop_keeps_as_many_running_as_there_are_clients(clients: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(loop_module, "perf_counter", lambda: next(clock))
    engine = FakeBatch()
    requests = closed_loop(engine, PROMPTS, clients, 6, [STOP])
    assert [request.tokens for request in requests] == ANSWERS
    assert engine.at_once[0] == max(engine.at_once) == clients
    assert all(request.counts == [1] * (len(request.tokens) - 1) for request in requests)
    assert all(len(request.waits) == len(request.counts) for request in requests)


def test_a_request_is_timed_from_its_arrival_and_cut_before_the_stop_token() -> None:
    stopwatch = Stopwatch(started=11.0)
    stopwatch.times, stopwatch.tokens = [(11.5, 1), (12.0, 3), (12.25, 2)], [4, 5, 6, 7, STOP, 9]
    assert request_of(stopwatch, 10.0, [STOP]) == PeerRequest([4, 5, 6, 7], 1.0, 0.5, [0.5, 0.25], [3, 2])


JOB = PeerJob("", {}, PROMPTS, [STOP], 6, 2, clients=[1, 3])


class OnlyTwo(FakeBatch):
    """Fails with more than two requests at once."""

    def step(self) -> list[tuple[int, list[int], bool]]:
        if len(self.left) > 2:
            raise RuntimeError("Exception from plugin:\nnot the same length\n")
        return super().step()


def test_an_engine_that_fails_with_many_clients_keeps_its_loops_with_fewer() -> None:
    found = answer_clients(OnlyTwo(), JOB, [4, 1, 2])
    assert [each["clients"] for each in found["loops"]] == [1, 2]
    assert found["failed"] == "with 4 clients: not the same length"
    with pytest.raises(RuntimeError):
        answer_clients(OnlyTwo(), JOB, [3])
    engine = FakeBatch()
    assert answer_clients(engine, JOB, [1, 5])["failed"] is None
    assert engine.forgotten == 2


def test_own_contenders_are_all_pairs_of_replicas_and_lanes(demo_engine: Callable[[str], Path], tmp_path: Path) -> None:
    contenders = own_batch_contenders([demo_engine("fp32")], [], [1, 2], [1, 8])
    assert [each.name.removeprefix("resps-fp32-") for each in contenders[1::2]] == [
        "1-replica", "2-replicas", "8-lanes", "2-replicas-8-lanes",
    ]  # fmt: skip
    assert {each.plain for each in contenders if each.speculates} == {"resps-fp32-1-replica-plain"}
    assert [(each.options["replicas"], each.options["lanes"]) for each in contenders[::2]] == [(1, 1), (2, 1), (1, 8), (2, 8)]
    with pytest.raises(BenchError, match="no manifest that names a precision"):
        own_batch_contenders([], [(ROOT, tmp_path)], [1], [1])


def test_contenders_for_clients_are_valid() -> None:
    names = [contender.name for contender in BATCH_PEERS]
    assert len(set(names)) == len(names)
    for contender in BATCH_PEERS:
        assert contender.precision in PRECISIONS
        assert contender.plain in names
        assert contender.environment in ENVIRONMENTS
        assert set(contender.formats.values()) <= set(FORMATS)
        assert contender.engine.endswith("_batch")
        assert (ROOT / "scripts" / "peers" / "engines" / f"{contender.engine}.py").is_file()


OURS = PeerContender("resps-fp32-1-replica-plain", "resps_batch", "fp32", "resps-fp32-1-replica-plain")
PEER = PeerContender("openvino-fp32-batch", "openvino_batch", "fp32", "openvino-fp32-batch", "openvino", note="a <note>")
INT8 = PeerContender("openvino-int8-batch", "openvino_batch", "int8", "openvino-int8-batch", "openvino")
TREE = PeerContender("openvino-int8-batch-eagle3", "openvino_batch", "int8", "openvino-int8-batch", "openvino")
QUESTIONS = [PeerQuestion("a:0", [1, 5, 6]), PeerQuestion("a:3", [1, 7])]


def loop_turn(speed: float, texts: dict[int, list[list[int]]]) -> LoopTurn:
    """Two answers, which together take 2 / ``speed`` seconds."""
    return LoopTurn(1.0, 100.0, 0.25, {
        clients: [PeerRequest(text, 1.0 * place / speed, 0.5 / speed, [0.5 / speed], [len(text) - 1]) for place, text in enumerate(each)]
        for clients, each in texts.items()
    })  # fmt: skip


GOOD, BAD = [[3, 4, 5], [8]], [[3, 4, 9], [8]]
LOOPS = {
    OURS.name: [loop_turn(1.0, {1: GOOD, 4: GOOD}), loop_turn(0.5, {1: GOOD, 4: GOOD})],
    PEER.name: [loop_turn(2.0, {1: GOOD, 4: BAD}), loop_turn(1.0, {1: GOOD, 4: BAD})],
    INT8.name: [loop_turn(3.0, {1: BAD, 4: GOOD}), loop_turn(1.5, {1: BAD, 4: GOOD})],
    TREE.name: [loop_turn(4.0, {1: BAD, 4: BAD}), loop_turn(2.0, {1: BAD, 4: BAD})],
}
CONTENDERS = [OURS, PEER, INT8, TREE]


def test_ratios_pair_turns_and_texts_are_compared_with_the_right_plain_one() -> None:
    turns = {name: load_turns(name, loops, QUESTIONS) for name, loops in LOOPS.items()}
    table = table_of([turn for each in turns.values() for turn in each], expected(CONTENDERS, turns))
    cells = {(cell.contender, cell.arrivals.clients): cell for cell in table.cells}
    assert cells[PEER.name, 4].ratio == pytest.approx(2.0)  # in both turns, however fast the machine was
    assert cells[PEER.name, 4].tokens_per_second == pytest.approx(3.0)
    assert cells[PEER.name, 4].prompt_tokens_per_second == pytest.approx(5 * 1.5 / 2)
    assert {key: cell.differing_answers for key, cell in cells.items()} == {
        (OURS.name, 1): 0, (OURS.name, 4): 0,
        (PEER.name, 1): 0, (PEER.name, 4): 2,  # float32 is compared with our plain float32
        (INT8.name, 1): 0, (INT8.name, 4): 2,  # int8 with itself, one client
        (TREE.name, 1): 0, (TREE.name, 4): 0,  # speculation with the plain engine
    }  # fmt: skip


def test_report_and_raw_figures(tmp_path: Path) -> None:
    bench = Bench(tmp_path, QUESTIONS, [STOP], 6, 2, clients=[1, 4])
    loops = {**LOOPS, TREE.name: [dataclasses.replace(turn, failed="with 9 clients: not so many") for turn in LOOPS[TREE.name]]}
    findings = findings_of(bench, CONTENDERS, loops, {"llama.cpp-fp32-batch": "no wheel"}, ["a remark"])
    text, page = text_of(findings, None), text_of(findings, tmp_path / "x.html")
    for shown in (
        "llama.cpp-fp32-batch: missing. no wheel",
        "a remark",
        "at most 0.25 cores",
        f"{TREE.name} fails with 9 clients: not so many",
        " 2.00x |",
        f"over {OURS.name}",
        "inter-token",
    ):
        assert shown in text
    assert "a &lt;note&gt;" in page
    assert page.count("<svg") == 3
    data = json.loads(json.dumps(findings.data()))
    assert data["turns"][PEER.name][1]["loops"]["4"][0]["tokens"] == BAD[0]


def test_a_contender_that_fails_is_left_out_from_then_on() -> None:
    failed: dict[str, str] = {}

    def take(contender: PeerContender, options: dict[str, Any], number: int) -> LoopTurn:
        if contender is PEER and number == 1:
            raise PeerUnavailable("crashed")
        return LOOPS[contender.name][0]

    turns = take_turns(take, [OURS, PEER], {OURS.name: {}, PEER.name: {}}, failed, 3)
    assert {name: len(each) for name, each in turns.items()} == {OURS.name: 3}
    assert failed == {PEER.name: "crashed"}


def test_a_run_without_any_turn_says_why(demo_engine: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Bench, *_: object) -> LoopTurn:
        raise PeerUnavailable("crashed at once")

    monkeypatch.setattr(Bench, "loops", fail)
    arguments = ["--engine-dir", str(demo_engine("fp32")), "--work", str(tmp_path), "--clients", "1", "--contenders", "resps*"]
    done = CliRunner().invoke(command, arguments)
    assert isinstance(done.exception, BenchError)
    assert "no contender finished a turn: crashed at once; crashed at once" in str(done.exception)


def test_wrong_usage_is_said(demo_engine: Callable[[str], Path], tmp_path: Path) -> None:
    directory = str(demo_engine("fp32"))
    base = ["--engine-dir", directory, "--work", str(tmp_path)]
    cases = [
        (["--replicas", "2"], "for several clients"),
        (["--old", str(ROOT), directory], "for several clients"),
        (["--clients", "1,50"], "50 clients need as many questions, there are 3"),
        (["--clients", "1", "--max-prompt-tokens", "1"], "no question has at most 1 tokens"),
    ]
    for arguments, says in cases:
        done = CliRunner().invoke(command, [*base, *arguments])
        assert isinstance(done.exception, BenchError), arguments
        assert says in str(done.exception)
    assert CliRunner().invoke(command, [*base, "--clients", "two"]).exit_code == 2
    listed = CliRunner().invoke(command, [*base, "--clients", "1", "--contenders", "resps*,llama.cpp-fp32*", "--list"])
    assert [line.split(":")[0] for line in listed.output.splitlines()] == [
        "resps-fp32-1-replica-plain", "resps-fp32-1-replica", "llama.cpp-fp32-batch",
    ]  # fmt: skip
