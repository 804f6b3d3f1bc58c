"""resps-bench: an engine directory and question files -> the tables of the papers, JSON, a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import run_command, set_verbosity, usage_errors
from ..drafters.registry import DRAFTERS
from ..errors import BenchError, RespsError

if TYPE_CHECKING:
    from policy import TreeSpec

    from .figures import Table
    from .record import Measurement

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
SHOWING = {"again", "report_file", "as_json", "verbose"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--engine-dir", type=click.Path(path_type=Path), default=Path("engines"), envvar="RESPS_ENGINE_DIR", show_default=True,
              show_envvar=True, help="Engine directory, or a parent that holds exactly one.")  # fmt: skip
@click.option("--prompts", type=FILE, multiple=True, metavar="FILE...",
              help="Question sets: JSON lines with turns or prompt, or a question a line [default: a few of all sorts].")  # fmt: skip
@click.argument("more", nargs=-1, type=FILE, metavar="[FILE]...")
@click.option("--policies", multiple=True, metavar="NAME,...",
              help="Which of resps-run's [default, without --tree: the default tree and all that were tuned].")  # fmt: skip
@click.option("--tree", "trees", multiple=True, metavar="NODES,DEPTH,WIDTH", help="A fixed tree; may be repeated.")
@click.option("--questions", type=click.IntRange(min=1), default=10, show_default=True, help="The first so many of each set.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Longest answer.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Of the draws; every turn has its own.")
@click.option("--draft", type=click.Choice(list(DRAFTERS)), help="What proposes trees [default: as resps-run].")
@click.option("--backend", type=click.Choice(["onnxruntime", "tensorrt"]), help="What runs the engines [default: what they were made for].")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where they run [default: where they were made for].")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of a pass [default: physical cores].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with every answer's figures instead of tables.")
@click.option("--report", "report_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.html",
              help="Write tables and pictures into one file (needs matplotlib: the extra bench).")  # fmt: skip
@click.option("--from", "again", type=FILE, metavar="FILE.json", help="Measure nothing: show what an earlier --json printed.")
@click.option("-v", "--verbose", count=True, help="Say what is done; -vv shows tracebacks.")
@click.version_option(package_name="resps")
def command(again: Path | None, report_file: Path | None, as_json: bool, verbose: int, **options: Any) -> None:
    """Compare policies and trees with plain decoding on question sets, side by side on the same engine.

    All arms answer every turn and take turns in answering first; their tokens are compared with plain decoding's. Interrupted, it shows
    what was measured so far. docs/benchmarks.md defines the figures.
    """
    set_verbosity(verbose)
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
        measurement, problem = _measured(options)
    _show(measurement, as_json, report_file)
    if problem:
        raise problem


def _expect_no_measuring(context: click.Context) -> None:
    for parameter in context.command.params:
        given = context.get_parameter_source(str(parameter.name)) == click.core.ParameterSource.COMMANDLINE
        if given and parameter.name not in SHOWING:
            raise click.UsageError(f"--from measures nothing, so {parameter.opts[0]} has no effect: leave one of them out")


def _measured(options: dict[str, Any]) -> tuple[Measurement, BaseException | None]:
    """What was measured, and what ended it too early."""
    import datetime

    from ..backends.cpu.processor import physical_cores
    from ..decoder import Decoder
    from ..manifest.load import find_engine_dir
    from ..sampling_params import SamplingParams
    from .contenders import make_arms
    from .machine import engine_of, this_machine
    from .measure import measure, warm_up
    from .questions import OWN, read_questions
    from .record import SCHEMA, BenchSettings, Measurement, Skipped, TurnRecord

    files = [*options["prompts"], *options["more"]] or [OWN]
    questions = read_questions(files, options["questions"])
    threads = options["threads"] or physical_cores()
    settings = BenchSettings(
        tuple(map(str, files)), options["questions"], options["max_new_tokens"], options["temperature"], options["seed"], threads
    )
    with usage_errors():
        SamplingParams(temperature=settings.temperature, seed=settings.seed)
    directory = find_engine_dir(options["engine_dir"])
    names = [name.strip() for group in options["policies"] for name in group.split(",")]
    answers: list[TurnRecord] = []
    skipped: list[Skipped] = []
    problem: BaseException | None = None
    trees, place = _parsed(options["trees"]), {name: options[name] for name in ("draft", "backend", "device")}
    with usage_errors():
        opened = Decoder(directory, policy="none", threads=threads, **place)
    with opened as decoder:
        arms = make_arms(names, trees, decoder)
        engine = engine_of(decoder)
        warm_up(decoder, arms)
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            for came in measure(decoder, questions, arms, settings, _progress):
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
    recorded = tuple(arm.recorded for arm in arms)
    stopped_early = problem is not None
    machine = this_machine()
    return Measurement(SCHEMA, date, stopped_early, settings, engine, machine, recorded, tuple(skipped), tuple(answers)), problem


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
    finally:  # a full disk must not cost an hour's figures
        _print(measurement, table, as_json)


def _print(measurement: Measurement, table: Table, as_json: bool) -> None:
    from .record import to_json
    from .tables import grids, headlines, markdown

    if as_json:
        click.echo(to_json(measurement, table))
        return
    click.echo("\n".join(headlines(measurement, table)))
    for grid in grids(measurement, table):
        click.echo("\n" + "\n".join(markdown(grid)))


def _progress(done: int, total: int) -> None:
    """A counter that overwrites itself, on a terminal only."""
    if sys.stderr.isatty():
        click.echo(f"\r{done} of {total} questions", err=True, nl=done == total)


def main() -> None:
    """Entry point of resps-bench."""
    sys.exit(run_command(command, "resps-bench"))
