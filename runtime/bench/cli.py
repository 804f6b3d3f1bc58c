"""resps-bench: an engine directory and question files -> tables, JSON, a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import options
from ..console import run_command, usage_errors
from ..errors import BenchError, RespsError
from ..options import FILE, OUTPUT, option
from ..standard_streams import print_json, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policy import TreeSpec

    from ..decoder import Decoder
    from .figures import Table
    from .record import Measurement

QUESTIONS = "Questions"
SHOWING = {"again", "report_file", "as_json", "verbose"}  # parameters that go with --from


@click.command(
    cls=options.Command,
    epilog="""\
resps-bench --engine-dir engines/smollm2-135m --policies none,fixed
resps-bench --prompts questions.jsonl --draft eagle --draft ngram --tree 5,3,2 --json > bench.json
resps-bench --from bench.json --report bench.html""",
)
@option(QUESTIONS, "--prompts", type=FILE, multiple=True, metavar="FILE...", show_default="a few of all kinds",
        help="Question files: JSON lines with turns or prompt, or a question a line.")  # fmt: skip
@click.argument("more", nargs=-1, type=FILE, metavar="[FILE]...")
@option(QUESTIONS, "--questions", type=click.IntRange(min=1), default=10, help="Number of questions per set.")
@options.policy("Policies to compare, also several with commas", "--policies", multiple=True, metavar="NAME,...",
                show_default="without --tree: the default tree and all tuned policies")  # fmt: skip
@options.tree("trees", "May be repeated.", multiple=True)
@options.draft(
    "drafts", "May be repeated: every policy and tree runs with every draft. Each one loads the engine again into memory.", multiple=True
)
@options.max_new_tokens(128)
@options.temperature
@options.seed("Base seed; every turn gets its own.", default=0)
@options.engine_dir
@options.backend_and_device
@options.threads()
@option(OUTPUT, "--json", "as_json", is_flag=True, help="Print one JSON object with the figures of every answer instead of tables.")
@option(OUTPUT, "--report", "report_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.html",
        help="Write tables and plots into one file (needs the extra bench).")  # fmt: skip
@option(OUTPUT, "--from", "again", type=FILE, metavar="FILE.json", help="Show the output of an earlier --json instead of measuring.")
@options.general
def command(again: Path | None, report_file: Path | None, as_json: bool, **given: Any) -> None:
    """Compare drafts, policies and trees with plain decoding on question sets, on the same engine in one run.

    The contenders are plain decoding and all pairs of a draft with a policy or tree. Every contender answers every turn, they rotate in
    answering first, and every token is compared with plain decoding's. If interrupted, the command shows what it has measured.
    docs/lab/figures.md defines the figures.
    """
    if report_file:
        from .svg import expect_matplotlib

        expect_matplotlib()
        if not report_file.absolute().parent.is_dir():
            raise BenchError(f"there is no folder for {report_file} — make it, or name another file")
    problem: BaseException | None = None
    if again:
        from .record import read

        _expect_no_measuring(click.get_current_context())
        measurement = read(again)
    else:
        measurement, problem = _measured(given)
    _show(measurement, as_json, report_file)
    if problem:
        raise problem


def _expect_no_measuring(context: click.Context) -> None:
    for parameter in context.command.params:
        given = context.get_parameter_source(str(parameter.name)) == click.core.ParameterSource.COMMANDLINE
        if given and parameter.name not in SHOWING:
            raise click.UsageError(f"--from measures nothing, so {parameter.opts[0]} has no effect: leave one of them out")


def _measured(given: dict[str, Any]) -> tuple[Measurement, BaseException | None]:
    """The measurement, and the error that ended it early, if any."""
    import datetime
    from contextlib import ExitStack

    from ..backends.cpu.processor import usable_cores
    from ..sampling_params import SamplingParams
    from .contenders import make_contenders
    from .machine import engine_of, this_machine
    from .measure import measure, warm_up
    from .questions import DEFAULT_FILE, read_questions
    from .record import SCHEMA, BenchSettings, Measurement, Skipped, TurnRecord

    files = [*given["prompts"], *given["more"]] or [DEFAULT_FILE]
    questions = read_questions(files, given["questions"])
    threads = given["threads"] or usable_cores()
    settings = BenchSettings(
        tuple(map(str, files)), given["questions"], given["max_new_tokens"], given["temperature"], given["seed"], threads
    )
    with usage_errors():
        SamplingParams(temperature=settings.temperature, seed=settings.seed)
    names = [name.strip() for group in given["policies"] for name in group.split(",")]
    trees = _parsed(given["trees"])
    answers: list[TurnRecord] = []
    skipped: list[Skipped] = []
    problem: BaseException | None = None
    with ExitStack() as stack:
        decoders = [stack.enter_context(decoder) for decoder in _opened(given, threads)]
        contenders = make_contenders(names, trees, decoders)
        engine = engine_of(decoders)
        warm_up(contenders)
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            for came in measure(questions, contenders, settings, _progress):
                if isinstance(came, Skipped):
                    skipped.append(came)
                else:
                    answers.extend(came)
        except (KeyboardInterrupt, RespsError) as stopped:
            problem = stopped
    if not answers:
        if problem:
            raise problem
        raise BenchError(f"none of the {len(questions)} questions can be asked: {skipped[0].reason}")
    records, machine = tuple(contender.record for contender in contenders), this_machine()
    stopped_early = problem is not None
    return Measurement(SCHEMA, date, stopped_early, settings, engine, machine, records, tuple(skipped), tuple(answers)), problem


def _opened(given: dict[str, Any], threads: int) -> Iterator[Decoder]:
    """One Decoder per draft, each with the whole engine in memory."""
    from ..decoder import Decoder
    from ..manifest.load import find_engine_dir

    directory = find_engine_dir(given["engine_dir"])
    for draft in dict.fromkeys(given["drafts"] or [None]):
        with usage_errors():
            decoder = Decoder(directory, policy="none", draft=draft, backend=given["backend"], device=given["device"], threads=threads)
        yield decoder


def _parsed(trees: tuple[str, ...]) -> list[TreeSpec]:
    from policy import TreeSpec

    with usage_errors():
        return [TreeSpec.parse(tree) for tree in trees]


def _show(measurement: Measurement, as_json: bool, report_file: Path | None) -> None:
    from .figures import tabulate

    table = tabulate(measurement)
    try:
        if report_file:
            from .report import report

            report_file.write_text(report(measurement, table), encoding="utf-8")
    finally:  # figures that took an hour are printed even if the disk is full
        _print(measurement, table, as_json)


def _print(measurement: Measurement, table: Table, as_json: bool) -> None:
    from .record import as_dict
    from .tables import headlines, markdown, tables

    if as_json:
        print_json(as_dict(measurement, table))
        return
    click.echo("\n".join(headlines(measurement, table)))
    for each in tables(measurement, table):
        click.echo("\n" + "\n".join(markdown(each)))


def _progress(done: int, total: int) -> None:
    """A counter on stderr, if that is a terminal."""
    if sys.stderr.isatty():
        say(f"\r{done} of {total} questions", nl=done == total)


def main() -> None:
    """Entry point of resps-bench."""
    sys.exit(run_command(command, "resps-bench"))
