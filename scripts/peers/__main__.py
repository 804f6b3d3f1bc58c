"""Our engine beside those that people would take instead: same weights, same prompts, one run.

    python -m scripts.peers --engine-dir engines/smollm2-135m --engine-dir engines/smollm2-135m-int8 --work /tmp/peers \
        --prompts QUESTIONS.jsonl --questions 3 --turns 3 --report peers.md

Every peer gets a virtual environment of its own below --work, with pinned versions, and the demo model's weights in its own form. Arms
take turns (A B C, A B C), each turn in a process of its own. Greedy; every engine gets the same token ids and stops at the model's stop
tokens or after --new-tokens; none may reuse an earlier prompt's cache. Finished turns are kept: an interrupted run, started again, goes on.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from runtime.console import run_command
from scripts.peers.closeness import all_closeness
from scripts.peers.compare import Closeness, first_difference, margin
from scripts.peers.contenders import PEERS, PeerContender, chosen, own_arms
from scripts.peers.errors import PeerError, PeerUnavailable
from scripts.peers.figures import Row, reference_name, rows
from scripts.peers.questions import read_questions
from scripts.peers.tables import markdown, notes, page
from scripts.peers.turns import Bench, Turn

Turns = dict[str, list[Turn]]


@click.command()
@click.option("--engine-dir", "engine_dirs", type=click.Path(path_type=Path), multiple=True, required=True, help="One for each precision.")
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Environments, models and finished turns are kept here (8 GB)."
)
@click.option("--arms", help="Comma-separated; NAME* takes all that begin so [default: all].")
@click.option("--prompts", type=click.Path(path_type=Path, exists=True, dir_okay=False), multiple=True, help="JSON lines with turns.")
@click.option("--questions", default=3, show_default=True, type=click.IntRange(1), help="Of each file.")
@click.option("--turns", "count", default=3, show_default=True, type=click.IntRange(1))
@click.option("--new-tokens", default=128, show_default=True, type=click.IntRange(2))
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
@click.option("--quiet", type=float, help="Wait until other processes take at most so many cores, and repeat disturbed turns (3 tries).")
@click.option("--logits/--no-logits", default=True, show_default=True, help="Compare distributions with float32's too.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="All raw figures.")
@click.option("--report", type=click.Path(path_type=Path), help="The table, .md or .html [default: printed].")
@click.option("--list", "only_list", is_flag=True, help="Print the arms and leave.")
def command(
    engine_dirs: tuple[Path, ...], work: Path, arms: str | None, prompts: tuple[Path, ...], questions: int, count: int, new_tokens: int,
    threads: int, quiet: float | None, logits: bool, json_file: Path | None, report: Path | None, only_list: bool,
) -> None:  # fmt: skip
    """Compare engines on the demo model."""
    if report is not None and report.suffix not in (".md", ".html"):
        raise PeerError(f"cannot write {report.name} — name the report .md or .html")
    wanted = chosen([*own_arms(engine_dirs), *PEERS], arms)
    if only_list:
        click.echo("\n".join(f"{arm.name}: {arm.precision} {arm.note}" for arm in wanted))
        return
    asked, stop = read_questions(engine_dirs[0], prompts, questions)
    bench = Bench(work.resolve(), asked, stop, new_tokens, threads, quiet)
    options, failed, remarks = prepare(bench, wanted)
    turns = take_turns(bench, wanted, options, failed, count)
    close, differences = judge(bench, wanted, options, turns) if logits else ({}, [])
    made = rows(wanted, asked, turns, close)
    title = f"{len(asked)} questions, {count} turns, {new_tokens} new tokens at most, {threads} threads, greedy."
    lines = notes(made, failed, [*remarks, *differences])
    text = (page if report is not None and report.suffix == ".html" else markdown)(title, made, lines)
    if json_file is not None:
        json_file.write_text(json.dumps(raw(bench, made, turns, failed, differences), indent=1))
    if report is None:
        click.echo(text)
    else:
        report.write_text(text, encoding="utf-8")


def prepare(bench: Bench, arms: list[PeerContender]) -> tuple[dict[str, dict[str, Any]], dict[str, str], list[str]]:
    """Options of the arms that can run here, why the others cannot, and remarks."""
    options, failed, remarks = {}, {}, []
    for arm in arms:
        say(f"{arm.name}: getting ready")
        try:
            options[arm.name], remark = bench.prepare(arm)
        except PeerUnavailable as error:
            failed[arm.name] = str(error)
            remark = str(error)
        else:
            remarks += [remark] if remark else []
        if remark:
            say(remark)
    return options, failed, remarks


def take_turns(bench: Bench, arms: list[PeerContender], options: dict[str, dict[str, Any]], failed: dict[str, str], count: int) -> Turns:
    """All turns; an arm that fails once is left out from then on and told in ``failed``."""
    turns: Turns = {}
    for number in range(count):
        for arm in arms:
            if arm.name in failed:
                continue
            try:
                turn = bench.turn(arm, options[arm.name], number)
            except PeerUnavailable as error:
                failed[arm.name] = str(error)
                turns.pop(arm.name, None)
                say(str(error))
                continue
            turns.setdefault(arm.name, []).append(turn)
            every = [answer.rate for answer in turn.answers if answer.rate]
            say(f"turn {number + 1}, {arm.name}: {sum(every) / max(1, len(every)):.1f} tokens/s, others {turn.others:.2f} cores")
    return turns


def judge(
    bench: Bench, arms: list[PeerContender], options: dict[str, dict[str, Any]], turns: Turns
) -> tuple[dict[str, Closeness], list[str]]:
    """Distributions against float32's, and every float32 answer that parts from the reference, with the margin it parted at."""
    reference = next((arm for arm in arms if arm.name == reference_name(arms, turns)), None)
    if reference is None:
        return {}, []
    # An empty answer has nothing to compare: its stop token is read instead, which it was.
    answers = [answer.tokens or bench.stop[:1] for answer in turns[reference.name][0].answers]
    close, true = all_closeness(bench, reference, [arm for arm in arms if turns.get(arm.name)], options, answers, say)
    told = []
    for arm in (arm for arm in arms if arm.precision == "fp32" and turns.get(arm.name)):
        for number, (answer, tokens) in enumerate(zip(turns[arm.name][0].answers, answers, strict=True)):
            place = first_difference(answer.tokens, tokens)
            if place is None or place >= min(len(tokens), len(answer.tokens)):
                continue
            gap = margin(true[number][place], (answer.tokens[place], tokens[place]))
            told.append(
                f"{arm.name} parts from {reference.name} at token {place} of {bench.questions[number].name}, by a margin of {gap:.2g}."
            )
    return close, told


def raw(bench: Bench, made: list[Row], turns: Turns, failed: dict[str, str], differences: list[str]) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "questions": [dataclasses.asdict(question) for question in bench.questions],
        "new_tokens": bench.new_tokens,
        "threads": bench.threads,
        "rows": [dataclasses.asdict(row) for row in made],
        "turns": {name: [dataclasses.asdict(turn) for turn in each] for name, each in turns.items()},
        "failed": failed,
        "differences": differences,
    }


def say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    sys.exit(run_command(command, "bench_peers"))
