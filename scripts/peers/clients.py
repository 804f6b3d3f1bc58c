"""Tables and report of a comparison with several clients. Figures: docs/lab/figures.md, "With several clients"."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from runtime.backends.cpu.processor import processor_name
from runtime.bench.load.figures import LoadTable, Plain, table_of
from runtime.bench.load.plots import plots
from runtime.bench.load.record import Arrivals, LoadAnswer, LoadTurn
from runtime.bench.load.tables import latency, throughput
from runtime.bench.report import Findings, report
from runtime.bench.tables import markdown
from scripts.peers.contenders import PeerContender
from scripts.peers.figures import reference_name
from scripts.peers.protocol import PeerRequest
from scripts.peers.questions import PeerQuestion
from scripts.peers.turns import Bench, LoopTurn


def load_turns(contender: str, turns: Sequence[LoopTurn], questions: Sequence[PeerQuestion]) -> list[LoadTurn]:
    """As resps-bench records them. Engines do not tell passes and cycles, nor what they found in a cache."""
    return [
        LoadTurn(contender, Arrivals(clients, None), number, 0, 0, tuple(map(_answer, requests, questions)))
        for number, turn in enumerate(turns)
        for clients, requests in turn.loops.items()
    ]


def _answer(request: PeerRequest, question: PeerQuestion) -> LoadAnswer:
    name, _, place = question.name.rpartition(":")
    return LoadAnswer(
        name, int(place), request.arrived, request.first_seconds, tuple(request.waits), tuple(request.counts), tuple(request.tokens), "",
        len(question.tokens), 0, 0,
    )  # fmt: skip


def expected(contenders: Sequence[PeerContender], turns: Mapping[str, Sequence[LoadTurn]]) -> dict[str, Plain]:
    """What each contender's answers are compared with: those with the fewest clients, in the first turn, of the float32 reference, or of
    the contender's plain one if its weights are quantized. Without that, its own."""
    reference = reference_name(contenders, turns)
    found: dict[str, Plain] = {}
    for contender in contenders:
        if not turns.get(contender.name):
            continue
        model = reference if contender.precision == "fp32" and reference else contender.plain
        alone = min(turns.get(model) or turns[contender.name], key=lambda turn: (turn.number, turn.arrivals.clients or 0))
        found[contender.name] = {(answer.set, answer.question): answer.tokens for answer in alone.answers}
    return found


def findings_of(
    bench: Bench,
    contenders: Sequence[PeerContender],
    loops: Mapping[str, Sequence[LoopTurn]],
    failed: Mapping[str, str],
    remarks: Sequence[str],
) -> Findings:
    """Tables, plots and raw figures."""
    turns = {name: load_turns(name, of_contender, bench.questions) for name, of_contender in loops.items()}
    table = table_of([turn for of_contender in turns.values() for turn in of_contender], expected(contenders, turns))
    return Findings(
        "Engines side by side, several clients",
        tuple(_headlines(bench, contenders, loops, failed, remarks)),
        (throughput(table), latency(table)),
        partial(plots, table),
        partial(_raw, bench, table, loops, failed),
    )


def _headlines(
    bench: Bench,
    contenders: Sequence[PeerContender],
    loops: Mapping[str, Sequence[LoopTurn]],
    failed: Mapping[str, str],
    remarks: Sequence[str],
) -> list[str]:
    count = max(map(len, loops.values()))
    what = f"{len(bench.questions)} questions, {count} turns, {bench.new_tokens} new tokens at most, {bench.threads} threads, greedy"
    busiest, name = max((turn.others, name) for name, of_contender in loops.items() for turn in of_contender)
    return [
        f"{what}, {processor_name()}.",
        "differ: answers other than those with the fewest clients, of our plain float32, or of the same engine's plain decoding if its "
        "weights are quantized. prompt tokens/s: all prompt tokens.",
        *(f"{each.name}: {each.note}" for each in contenders if each.note and each.name in loops),
        f"Other processes used at most {busiest:.2f} cores ({name}).",
        *(f"{each}: missing. {reason}" for each, reason in failed.items()),
        *dict.fromkeys(f"{each} fails {turn.failed}" for each, of_contender in loops.items() for turn in of_contender if turn.failed),
        *remarks,
    ]


def _raw(bench: Bench, table: LoadTable, loops: Mapping[str, Sequence[LoopTurn]], failed: Mapping[str, str]) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "questions": [dataclasses.asdict(question) for question in bench.questions],
        "new_tokens": bench.new_tokens,
        "threads": bench.threads,
        "table": dataclasses.asdict(table),
        "turns": {name: [dataclasses.asdict(turn) for turn in of_contender] for name, of_contender in loops.items()},
        "failed": dict(failed),
    }


def text_of(findings: Findings, file: Path | None) -> str:
    """HTML if ``file`` ends so, else Markdown. Raises BenchError if HTML is wanted and matplotlib is missing."""
    if file is not None and file.suffix == ".html":
        return report(findings)
    tables = ["\n".join(markdown(table)) for table in findings.tables]
    return "\n\n".join([findings.title, "\n".join(f"- {line}" for line in findings.headlines), *tables]) + "\n"
