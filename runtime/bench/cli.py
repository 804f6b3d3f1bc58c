"""resps-bench: an engine directory and question files -> tables, JSON, a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import run_command, set_verbosity, usage_errors
from ..drafters.registry import DRAFTERS
from ..errors import BenchError, RespsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policy import TreeSpec

    from ..decoder import Decoder
    from .figures import Table
    from .record import Measurement

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
SHOWING = {"again", "report_file", "as_json", "verbose"}  # parameters that go with --from


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--engine-dir", type=click.Path(path_type=Path), default=Path("engines"), envvar="RESPS_ENGINE_DIR", show_default=True,
              show_envvar=True, help="Engine directory, or a parent that holds exactly one.")  # fmt: skip
@click.option("--prompts", type=FILE, multiple=True, metavar="FILE...",
              help="Question files: JSON lines with turns or prompt, or a question a line [default: a few of all kinds].")  # fmt: skip
@click.argument("more", nargs=-1, type=FILE, metavar="[FILE]...")
@click.option("--policies", multiple=True, metavar="NAME,...",
              help="Policies of resps-run [default, without --tree: the default tree and all tuned policies].")  # fmt: skip
@click.option("--tree", "trees", multiple=True, metavar="NODES,DEPTH,WIDTH", help="A fixed tree; may be repeated.")
@click.option("--questions", type=click.IntRange(min=1), default=10, show_default=True, help="Number of questions per set.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Limit of an answer.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Base seed; every turn gets its own.")
@click.option("--draft", "drafts", multiple=True, type=click.Choice(list(DRAFTERS)),
              help="What proposes trees [default: as resps-run]. May be repeated: every policy and tree runs with every draft. Each draft "
              "loads the engine again, so two take twice the memory of one.")  # fmt: skip
@click.option("--backend", type=click.Choice(["onnxruntime", "tensorrt"]), help="What runs the engine [default: what it was exported for].")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where it runs [default: where it was exported for].")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of a forward pass [default: physical cores].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the figures of every answer instead of tables.")
@click.option("--report", "report_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.html",
              help="Write tables and plots into one file (needs matplotlib: the extra bench).")  # fmt: skip
@click.option("--from", "again", type=FILE, metavar="FILE.json", help="Show the output of an earlier --json instead of measuring.")
@click.option("-v", "--verbose", count=True, help="Say what is done; -vv shows tracebacks.")
@click.version_option(package_name="resps")
def command(again: Path | None, report_file: Path | None, as_json: bool, verbose: int, **options: Any) -> None:
    """Compare drafts, policies and trees with plain decoding on question sets, on the same engine in one run.

    The contenders are plain decoding and all pairs of a draft with a policy or tree. Every contender answers every turn, they rotate in
    answering first, and every token is compared with plain decoding's. If interrupted, the command shows what it has measured.
    docs/benchmarks.md defines the figures.
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
    """The measurement, and the error that ended it early, if any."""
    import datetime
    from contextlib import ExitStack

    from ..backends.cpu.processor import physical_cores
    from ..sampling_params import SamplingParams
    from .contenders import make_contenders
    from .machine import engine_of, this_machine
    from .measure import measure, warm_up
    from .questions import DEFAULT_FILE, read_questions
    from .record import SCHEMA, BenchSettings, Measurement, Skipped, TurnRecord

    files = [*options["prompts"], *options["more"]] or [DEFAULT_FILE]
    questions = read_questions(files, options["questions"])
    threads = options["threads"] or physical_cores()
    settings = BenchSettings(
        tuple(map(str, files)), options["questions"], options["max_new_tokens"], options["temperature"], options["seed"], threads
    )
    with usage_errors():
        SamplingParams(temperature=settings.temperature, seed=settings.seed)
    names = [name.strip() for group in options["policies"] for name in group.split(",")]
    trees = _parsed(options["trees"])
    answers: list[TurnRecord] = []
    skipped: list[Skipped] = []
    problem: BaseException | None = None
    with ExitStack() as stack:
        decoders = [stack.enter_context(decoder) for decoder in _opened(options, threads)]
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


def _opened(options: dict[str, Any], threads: int) -> Iterator[Decoder]:
    """One Decoder per draft, each with the whole engine in memory."""
    from ..decoder import Decoder
    from ..manifest.load import find_engine_dir

    directory = find_engine_dir(options["engine_dir"])
    for draft in dict.fromkeys(options["drafts"] or [None]):
        with usage_errors():
            decoder = Decoder(directory, policy="none", draft=draft, backend=options["backend"], device=options["device"], threads=threads)
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
    from .record import to_json
    from .tables import headlines, markdown, tables

    if as_json:
        click.echo(to_json(measurement, table))
        return
    click.echo("\n".join(headlines(measurement, table)))
    for each in tables(measurement, table):
        click.echo("\n" + "\n".join(markdown(each)))


def _progress(done: int, total: int) -> None:
    """A counter on stderr, if that is a terminal."""
    if sys.stderr.isatty():
        click.echo(f"\r{done} of {total} questions", err=True, nl=done == total)


def main() -> None:
    """Entry point of resps-bench."""
    sys.exit(run_command(command, "resps-bench"))
