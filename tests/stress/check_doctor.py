"""Plants faults in the demo model's pair, exports every one, and counts those that resps-bench --doctor names; then its false alarms.

    python -m tests.stress.check_doctor [--precision int8] [--only TEXT] [--no-faults] [--sets 0]

Every fault goes through resps-export, as a user would meet it. Healthy pairs are asked sets of other questions, SIZE in each. Prints a line
for each run; the exit code is 1 if a fault was not named first, or a healthy pair was found ill.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import click

from runtime.bench.cli import SICK
from runtime.bench.questions import DEFAULT_FILE, read_questions
from runtime.console import run_command
from tests.support.doctor_pairs import CASES, DEMO, examined, examined_case, exported, findings
from tests.support.prompts import CHAT, TEXT

SIZE = 6
PROMPTS = Path(__file__).parents[2] / "export" / "prompts.txt"


@click.command()
@click.option("--precision", "precisions", multiple=True, default=("fp32", "int8", "int4"), show_default=True, help="Of the target.")
@click.option("--only", default="", help="Faults whose finding has this text.")
@click.option("--questions", default=5, show_default=True, help="Of the doctor's own, for each fault.")
@click.option("--sets", default=14, show_default=True, help="Sets of questions for a healthy pair.")
@click.option("--faults/--no-faults", default=True)
def main(precisions: Sequence[str], only: str, questions: int, sets: int, faults: bool) -> None:
    """Print a line for each run, and the counts."""
    wrong = 0
    for precision in precisions:
        if faults:
            wrong += unnamed(precision, [says for says in CASES if only in says], questions)
        if sets:
            wrong += alarms(precision, sets)
    sys.exit(1 if wrong else 0)


def unnamed(precision: str, wanted: Sequence[str], questions: int) -> int:
    """Prints what the doctor says of each fault; returns how many it does not name."""
    missed = 0
    for says in wanted:
        with tempfile.TemporaryDirectory() as folder:
            ended = examined_case(CASES[says], Path(folder), precision, "--questions", str(questions))
        found = findings(ended)
        named = ended.returncode == SICK and says in found[0]
        missed += not named
        click.echo(f"{precision}, {'named' if named else f'NOT NAMED ({says}), exit code {ended.returncode}'}: {' | '.join(found)}")
    click.echo(f"{precision}: {len(wanted) - missed} of {len(wanted)} faults named")
    return missed


def alarms(precision: str, sets: int) -> int:
    """Prints what the doctor says of the healthy pair, asked one set after the other; returns how often it says anything."""
    false, asked = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        engine = exported(Path(folder), precision, "--model", DEMO)
        for name, questions in islice(question_sets(), sets):
            file = Path(folder) / "asked.jsonl"
            file.write_text("".join(f"{question}\n" for question in questions), encoding="utf-8")
            ended = examined(engine, "--prompts", str(file))
            asked += 1
            false += ended.returncode != 0
            click.echo(
                f"{precision}, {name}, exit code {ended.returncode}: {' | '.join([*ended.stdout.splitlines()[1:4], *findings(ended)])}"
            )
    click.echo(f"{precision}: {false} false alarms in {asked} runs")
    return false


def question_sets() -> Iterator[tuple[str, list[str]]]:
    """Sets of SIZE questions, in JSON: the project's own of every kind."""
    sources = {"prompts": [each.turns[0] for each in read_questions([PROMPTS], 1 << 20)], "chat": CHAT, "text": TEXT}
    sources["mixed"] = [each.turns[0] for each in read_questions([DEFAULT_FILE], 1 << 20)]
    starts = [(start, name) for name, texts in sources.items() for start in range(0, len(texts) - SIZE + 1, SIZE)]
    for start, name in sorted(starts, key=lambda place: place[0]):  # some of every kind come first
        yield f"{name} from {start}", [json.dumps({"prompt": text}) for text in sources[name][start : start + SIZE]]


if __name__ == "__main__":
    sys.exit(run_command(main, "check_doctor"))
