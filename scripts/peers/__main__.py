"""Compares this engine with other engines on the demo model: same weights, same prompts, one run.

    python -m scripts.peers --engine-dir engines/smollm2-135m --engine-dir engines/smollm2-135m-int8 --work DIR \
        --prompts QUESTIONS.jsonl --questions 3 --turns 3 --report peers.md

Every engine gets a virtual environment with pinned versions and the demo model's weights in its own format, both below --work. Contenders
alternate (A B C, A B C), and every turn is a process of its own. Decoding is greedy. Every engine gets the same token ids, stops at the
model's stop tokens or after --new-tokens, and may not reuse an earlier prompt's cache. Finished turns are kept, so that an interrupted run
can be continued.

With --clients 1,2,4,8,16 several requests are answered at once, in a closed loop (docs/lab/figures.md): OpenVINO's continuous batching,
llama.cpp's batched decoding, this project with --replicas or --lanes, and older checkouts of it with --old. Ratios are over the first
contender's throughput in the same turn.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from runtime.bench.svg import expect_matplotlib
from runtime.console import run_command
from runtime.errors import BenchError
from runtime.options import numbers
from scripts.peers.clients import findings_of, text_of
from scripts.peers.compare import Closeness, first_difference, margin
from scripts.peers.contenders import BATCH_PEERS, PEERS, PeerContender, chosen, own_batch_contenders, own_contenders
from scripts.peers.environments import PeerUnavailable
from scripts.peers.figures import Row, reference_name, rows
from scripts.peers.logits import all_closeness
from scripts.peers.questions import read_questions
from scripts.peers.tables import markdown, notes, page
from scripts.peers.turns import Bench, LoopTurn, Turn

Turns = dict[str, list[Turn]]
Took = TypeVar("Took", Turn, LoopTurn)
PLACE = click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True)


@click.command()
@click.option("--engine-dir", "engine_dirs", type=click.Path(path_type=Path), multiple=True, required=True, help="One per precision.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Keeps environments, models and finished turns (8 GB).")
@click.option("--contenders", "names", help="Comma-separated; NAME* takes all that begin with NAME [default: all].")
@click.option(
    "--prompts", type=click.Path(path_type=Path, exists=True, dir_okay=False), multiple=True, help="Question file: JSON lines with turns."
)
@click.option("--questions", default=3, show_default=True, type=click.IntRange(1), help="Number of questions per file.")
@click.option("--turns", "count", default=3, show_default=True, type=click.IntRange(1))
@click.option("--clients", callback=numbers(int, 1), help="Numbers of clients, such as 1,2,4: several requests at once.")
@click.option("--replicas", type=click.IntRange(1), multiple=True, help="With --clients: of this project. May be repeated [default: 1].")
@click.option("--lanes", type=click.IntRange(1), multiple=True, help="With --clients: of this project. May be repeated [default: 1].")
@click.option(
    "--old",
    "olds",
    type=(PLACE, PLACE),
    multiple=True,
    metavar="CHECKOUT ENGINE_DIR",
    help="With --clients: an older checkout of this project, and a directory that it exported. May be repeated.",
)
@click.option("--max-prompt-tokens", type=click.IntRange(1), help="Leave longer prompts out.")
@click.option("--new-tokens", default=128, show_default=True, type=click.IntRange(2))
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
@click.option("--quiet", type=float, help="Wait until other processes use at most this many cores, and repeat disturbed turns (3 tries).")
@click.option("--logits/--no-logits", default=True, show_default=True, help="Compare the distributions with float32's.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all raw figures.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the table, .md or .html [default: print it].")
@click.option("--list", "only_list", is_flag=True, help="List the contenders and exit.")
def command(
    engine_dirs: tuple[Path, ...],
    work: Path,
    names: str | None,
    prompts: tuple[Path, ...],
    questions: int,
    count: int,
    clients: list[int] | None,
    replicas: tuple[int, ...],
    lanes: tuple[int, ...],
    olds: tuple[tuple[Path, Path], ...],
    max_prompt_tokens: int | None,
    new_tokens: int,
    threads: int,
    quiet: float | None,
    logits: bool,
    json_file: Path | None,
    report: Path | None,
    only_list: bool,
) -> None:
    """Compare this engine with other engines on the demo model."""
    if report is not None and report.suffix not in (".md", ".html"):
        raise BenchError(f"cannot write {report.name} — name the report .md or .html")
    if clients is not None and report is not None and report.suffix == ".html":
        expect_matplotlib()
    if clients is None and (replicas or lanes or olds):
        raise BenchError("--replicas, --lanes and --old are for several clients — give --clients too")
    own = own_contenders(engine_dirs) if clients is None else own_batch_contenders(engine_dirs, olds, replicas or (1,), lanes or (1,))
    contenders = chosen([*own, *(PEERS if clients is None else BATCH_PEERS)], names)
    if only_list:
        click.echo("\n".join(f"{contender.name}: {contender.precision} {contender.note}" for contender in contenders))
        return
    peer_questions, stop = read_questions(engine_dirs[0], prompts, questions, max_prompt_tokens)
    if max(clients or [1]) > len(peer_questions):
        raise BenchError(f"{max(clients or [1])} clients need as many questions, there are {len(peer_questions)} — raise --questions")
    bench = Bench(work.resolve(), peer_questions, stop, new_tokens, threads, quiet, clients)
    options, failed, remarks = prepare(bench, contenders)
    if clients is None:
        text, data = compare_one_at_a_time(bench, contenders, options, failed, remarks, count, logits, report)
    else:
        loops = take_turns(bench.loops, contenders, options, failed, count)
        if not loops:
            raise BenchError(f"no contender finished a turn: {'; '.join(failed.values())} — see the jobs in the work directory")
        findings = findings_of(bench, contenders, loops, failed, remarks)
        text, data = text_of(findings, report), findings.data()
    if json_file is not None:
        json_file.write_text(json.dumps(data, indent=1))
    if report is None:
        click.echo(text)
    else:
        report.write_text(text, encoding="utf-8")


def compare_one_at_a_time(
    bench: Bench,
    contenders: list[PeerContender],
    options: dict[str, dict[str, Any]],
    failed: dict[str, str],
    remarks: list[str],
    count: int,
    logits: bool,
    report: Path | None,
) -> tuple[str, dict[str, Any]]:
    """The report as text, and all raw figures."""
    turns = take_turns(bench.turn, contenders, options, failed, count)
    close, differences = compare_answers(bench, contenders, options, turns) if logits else ({}, [])
    table = rows(contenders, bench.questions, turns, close)
    title = f"{len(bench.questions)} questions, {count} turns, {bench.new_tokens} new tokens at most, {bench.threads} threads, greedy."
    lines = notes(table, failed, [*remarks, *differences])
    text = (page if report is not None and report.suffix == ".html" else markdown)(title, table, lines)
    return text, raw(bench, table, turns, failed, differences)


def prepare(bench: Bench, contenders: list[PeerContender]) -> tuple[dict[str, dict[str, Any]], dict[str, str], list[str]]:
    """Options of the contenders that run here, why the others do not, and remarks."""
    options, failed, remarks = {}, {}, []
    for contender in contenders:
        say(f"{contender.name}: preparing")
        try:
            options[contender.name], remark = bench.prepare(contender)
        except PeerUnavailable as error:
            failed[contender.name] = str(error)
            remark = str(error)
        else:
            remarks += [remark] if remark else []
        if remark:
            say(remark)
    return options, failed, remarks


def take_turns(
    take: Callable[[PeerContender, dict[str, Any], int], Took],
    contenders: list[PeerContender],
    options: dict[str, dict[str, Any]],
    failed: dict[str, str],
    count: int,
) -> dict[str, list[Took]]:
    """All turns. A contender that fails is left out from then on and added to ``failed``."""
    turns: dict[str, list[Took]] = {}
    for number in range(count):
        for contender in contenders:
            if contender.name in failed:
                continue
            try:
                turn = take(contender, options[contender.name], number)
            except PeerUnavailable as error:
                failed[contender.name] = str(error)
                turns.pop(contender.name, None)
                say(str(error))
                continue
            turns.setdefault(contender.name, []).append(turn)
            say(f"turn {number + 1}, {contender.name}: {turn.summary}, other processes {turn.others:.2f} cores")
    return turns


def compare_answers(
    bench: Bench, contenders: list[PeerContender], options: dict[str, dict[str, Any]], turns: Turns
) -> tuple[dict[str, Closeness], list[str]]:
    """Closeness to float32, and one line for every float32 answer that differs from the reference, with the logit margin."""
    reference = next((contender for contender in contenders if contender.name == reference_name(contenders, turns)), None)
    if reference is None:
        return {}, []
    # An empty answer has no token to compare: its stop token is compared instead.
    answers = [answer.tokens or bench.stop[:1] for answer in turns[reference.name][0].answers]
    finished = [contender for contender in contenders if turns.get(contender.name)]
    close, reference_logits = all_closeness(bench, reference, finished, options, answers, say)
    lines = []
    for contender in [contender for contender in finished if contender.precision == "fp32"]:
        for number, (answer, tokens) in enumerate(zip(turns[contender.name][0].answers, answers, strict=True)):
            index = first_difference(answer.tokens, tokens)
            if index is None or index >= min(len(tokens), len(answer.tokens)):
                continue
            gap = margin(reference_logits[number][index], (answer.tokens[index], tokens[index]))
            where = f"token {index} of {bench.questions[number].name}"
            lines.append(f"{contender.name} differs from {reference.name} at {where}, by a margin of {gap:.2g}.")
    return close, lines


def raw(bench: Bench, table: list[Row], turns: Turns, failed: dict[str, str], differences: list[str]) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "questions": [dataclasses.asdict(question) for question in bench.questions],
        "new_tokens": bench.new_tokens,
        "threads": bench.threads,
        "rows": [dataclasses.asdict(row) for row in table],
        "turns": {name: [dataclasses.asdict(turn) for turn in of_contender] for name, of_contender in turns.items()},
        "failed": failed,
        "differences": differences,
    }


def say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    sys.exit(run_command(command, "scripts.peers"))
