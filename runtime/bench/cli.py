"""resps-bench: an engine directory and question files -> tables, JSON, a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import options
from ..console import run_command, usage_errors
from ..errors import BenchError
from ..options import FILE, OUTPUT, option
from ..standard_streams import print_json

if TYPE_CHECKING:
    from policy import TreeSpec

    from .report import Findings

QUESTIONS, CLIENTS, DOCTOR = "Questions", "Several clients", "Doctor"
SHOWING = {"again", "report_file", "as_json", "verbose"}  # parameters that go with --from
LOAD = {"replicas", "lanes", "turns", "max_prompt_tokens"}  # parameters that need several clients
CHECKPOINTS = {"weights", "draft_weights"}  # parameters that need --doctor
EXAMINING = {*CHECKPOINTS, "doctor", "prompts", "more", "questions", "max_new_tokens", "engine_dir", "backend", "device", "threads"}
DOCTORS_TOKENS, SICK = 48, 5  # most tokens of an answer without --max-new-tokens; exit code if the doctor found something


@click.command(
    cls=options.Command,
    epilog="""\
resps-bench --engine-dir engines/smollm2-135m --policies none,fixed
resps-bench --prompts questions.jsonl --draft eagle --draft ngram --tree 5,3,2 --json > bench.json
resps-bench --engine-dir engines/smollm2-135m --clients 1,2,4,8 --replicas 1 --replicas 2 --max-new-tokens 64 --report bench.html
resps-bench --engine-dir engines/smollm2-135m --doctor""",
)
@option(QUESTIONS, "--prompts", type=FILE, multiple=True, metavar="FILE...", show_default="a few of all kinds",
        help="Question files: JSON lines with turns or prompt, or a question a line.")  # fmt: skip
@click.argument("more", nargs=-1, type=FILE, metavar="[FILE]...")
@option(QUESTIONS, "--questions", type=click.IntRange(min=1), default=10, help="Number of questions per set.")
@option(QUESTIONS, "--max-prompt-tokens", type=click.IntRange(min=1), help="With several clients: leave longer prompts out.")
@option(CLIENTS, "--clients", callback=options.numbers(int, 1), metavar="N,...", show_default="one request at a time",
        help="Numbers of clients, each of which sends its next request as soon as its last answer has ended.")  # fmt: skip
@option(CLIENTS, "--rate", callback=options.numbers(float, 0.001), metavar="R,...",
        help="Poisson arrivals: so many requests a second, whether answers have ended or not.")  # fmt: skip
@option(CLIENTS, "--replicas", type=click.IntRange(1, 64), multiple=True, show_default="1",
        help="Decoders over the same weights. May be repeated, to compare in turns.")  # fmt: skip
@option(CLIENTS, "--lanes", type=click.IntRange(1, 1024), multiple=True, show_default="1",
        help="Requests that one Decoder runs at once. May be repeated: all pairs with the replicas take part.")  # fmt: skip
@option(CLIENTS, "--turns", type=click.IntRange(min=1), default=3, help="Times that every question is asked of each setting.")
@option(DOCTOR, "--doctor", is_flag=True, help="Measure no speed: say why the engine's EAGLE-3 draft accepts little. Exit code 5 if it "
        "finds a reason.")  # fmt: skip
@option(DOCTOR, "--weights", metavar="DIR|FILE.gguf|HUB-ID", show_default="where the export found it", help="The target's checkpoint.")
@option(DOCTOR, "--draft-weights", metavar="DIR|HUB-ID", show_default="where the export found it", help="The draft's checkpoint.")
@options.policy("Policies to compare, also several with commas", "--policies", multiple=True, metavar="NAME,...",
                show_default="without --tree: the default tree and all tuned policies; with clients: the Decoder's own")  # fmt: skip
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
    With --clients or --rate requests overlap, and throughput and latency are compared. docs/lab/figures.md defines the figures.
    """
    if report_file:
        from .svg import expect_matplotlib

        expect_matplotlib()
        if not report_file.absolute().parent.is_dir():
            raise BenchError(f"there is no folder for {report_file} — make it, or name another file")
    problem: BaseException | None = None
    context = click.get_current_context()
    if given["doctor"]:
        _examine(context, given, as_json)
        return
    _expect_absent(context, CHECKPOINTS, "{} is for --doctor — give that too")
    if again:
        measuring = {str(each.name) for each in context.command.params} - SHOWING
        _expect_absent(context, measuring, "--from measures nothing, so {} has no effect: leave one of them out")
        findings = _read_again(again)
    elif given["clients"] or given["rate"]:
        findings, problem = _measured(given, several=True)
    else:
        _expect_absent(context, LOAD, "{} is for several clients — give --clients or --rate too")
        findings, problem = _measured(given, several=False)
    _show(findings, as_json, report_file)
    if problem:
        raise problem


def _expect_absent(context: click.Context, names: set[str], message: str) -> None:
    """Raises UsageError if one of these parameters was given. ``message`` with {} for its option."""
    for parameter in context.command.params:
        given = context.get_parameter_source(str(parameter.name)) == click.core.ParameterSource.COMMANDLINE
        if given and parameter.name in names:
            raise click.UsageError(message.format(parameter.opts[0]))


def _examine(context: click.Context, given: dict[str, Any], as_json: bool) -> None:
    """--doctor. Ends the command with SICK if something is wrong."""
    from export.doctor.run import examined  # the doctor reads checkpoints, as the exporter does

    others = {str(each.name) for each in context.command.params} - EXAMINING - SHOWING | {"again", "report_file"}
    _expect_absent(context, others, "--doctor measures no speed, so {} has no effect: leave it out")
    chosen = context.get_parameter_source("max_new_tokens") == click.core.ParameterSource.COMMANDLINE
    examination = examined(given, _files(given), given["max_new_tokens"] if chosen else DOCTORS_TOKENS)
    if as_json:
        print_json(examination.data())
    else:
        click.echo("\n".join(examination.lines()))
    if examination.findings:
        context.exit(SICK)


def _read_again(file: Path) -> Findings:
    from . import record, report
    from .load import record as load_record
    from .load import report as load_report

    data = record.read(file)
    if data.get("kind") == load_record.KIND:
        return load_report.findings_of(load_record.from_dict(data, file))
    return report.findings_of(record.from_dict(data, file))


def _measured(given: dict[str, Any], several: bool) -> tuple[Findings, BaseException | None]:
    """What was found, and the error that ended it early, if any. ``several``: with several clients."""
    from .load.report import findings_of as load_findings_of
    from .load.run import measured as load_measured
    from .report import findings_of
    from .run import measured

    names = [name.strip() for group in given["policies"] for name in group.split(",")]
    asked = (_files(given), names, _parsed(given["trees"]))
    if several:
        load_measurement, problem = load_measured(given, *asked)
        return load_findings_of(load_measurement), problem
    measurement, problem = measured(given, *asked)
    return findings_of(measurement), problem


def _files(given: dict[str, Any]) -> list[Path]:
    from .questions import DEFAULT_FILE

    return [*given["prompts"], *given["more"]] or [DEFAULT_FILE]


def _parsed(trees: tuple[str, ...]) -> list[TreeSpec]:
    from policy import TreeSpec

    with usage_errors():
        return [TreeSpec.parse(tree) for tree in trees]


def _show(findings: Findings, as_json: bool, report_file: Path | None) -> None:
    try:
        if report_file:
            from .report import report

            report_file.write_text(report(findings), encoding="utf-8")
    finally:  # figures that took an hour are printed even if the disk is full
        _print(findings, as_json)


def _print(findings: Findings, as_json: bool) -> None:
    from .tables import markdown

    if as_json:
        print_json(findings.data())
        return
    click.echo("\n".join(findings.headlines))
    for each in findings.tables:
        click.echo("\n" + "\n".join(markdown(each)))


def main() -> None:
    """Entry point of resps-bench."""
    sys.exit(run_command(command, "resps-bench"))
