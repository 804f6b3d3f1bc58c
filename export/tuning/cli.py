"""resps-tune: an engine directory -> the same with the policy that is fastest on this machine."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from runtime.console import run_command, set_verbosity
from runtime.policies.registry import POLICIES

if TYPE_CHECKING:
    from runtime import Decoder

    from .outcome import TuningResult

RECORDING, TRAINING = 0.35, 0.4  # shares of the minutes; the rest measures and confirms
LEARNED = tuple(name for name, kind in POLICIES.items() if kind.learned and not kind.variant)
VARIANTS = tuple(name for name, kind in POLICIES.items() if kind.variant)  # as the papers compare them


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--engine-dir", type=click.Path(path_type=Path), default=Path("engines"), envvar="RESPS_ENGINE_DIR", show_default=True,
              show_envvar=True, help="Engine directory, or a parent that holds exactly one.")  # fmt: skip
@click.option("--prompts", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Your own: JSON lines with prompt or turns, or a prompt a line [default: a collection of all sorts].")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(min=0.1), default=20.0, show_default=True, help="About how long it may take.")
@click.option("--policy", "policies", multiple=True, type=click.Choice(["cost-model", *LEARNED, *VARIANTS, "all"]),
              help="A candidate, may be repeated [default: the first four]. The cost model always is one.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of a pass [default: physical cores]; tuning holds for this many.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with what was found: FILE.html.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the training.")
@click.option("--dry-run", is_flag=True, help="Install nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-v", "--verbose", count=True, help="Say what is done; -vv shows tracebacks.")
@click.version_option(package_name="resps")
def command(engine_dir: Path, **options: Any) -> None:
    """Find the fastest policy for an engine on this machine, and install it if it beats the best fixed tree.

    May be interrupted and started again: recorded answers are kept, and the engine changes only at the very end.
    """
    set_verbosity(options["verbose"])
    from runtime import Decoder
    from runtime.backends.cpu.processor import physical_cores
    from runtime.engine import choose_engine, load_engine
    from runtime.manifest.load import find_engine_dir

    from .install import install
    from .outcome import summary
    from .prompts import read_prompts
    from .report import expect_writable, write_report

    if options["report"]:
        expect_writable(options["report"])
    asked = read_prompts(options["prompts"])
    named = tuple(dict.fromkeys(options["policies"]))
    learned = (*LEARNED, *VARIANTS) if "all" in named else tuple(name for name in named if name != "cost-model") if named else LEARNED
    directory, threads = find_engine_dir(engine_dir), options["threads"] or physical_cores()
    choice = choose_engine(directory, draft=None, backend=None, device=None, threads=threads, verify=True, tuned=False)
    with Decoder(load_engine(choice), policy="fixed") as decoder:
        tuned = _tuned(decoder, asked, options["minutes"], learned, threads, options["seed"])
        manifest = decoder.manifest
    if options["report"]:
        write_report(options["report"], manifest, tuned)
    tuning = tuned.tuning if options["dry_run"] else install(directory, manifest, tuned).tuning
    assert tuning is not None
    click.echo(json.dumps(dataclasses.asdict(tuning)) if options["as_json"] else "\n".join(summary(tuned)))


def _tuned(decoder: Decoder, asked: list[str], minutes: float, learned: tuple[str, ...], threads: int, seed: int) -> TuningResult:
    from ..checkpoints.fetch import cache_directory
    from .errors import TuningError
    from .outcome import tuning_result
    from .replay.grid import grid_for
    from .replay.latency import measure_latency
    from .replay.record import MIN_PROMPTS, record
    from .tune import confirm, fit, simulate, split, train

    if decoder.manifest.draft is None:
        raise TuningError("the engine has no EAGLE-3 draft, so there is nothing to tune — export with --draft-weights")
    if len(asked) < MIN_PROMPTS:
        raise TuningError(f"{len(asked)} prompts are too few, tuning needs {MIN_PROMPTS} — give more with --prompts")
    started, grid = perf_counter(), grid_for(decoder.manifest)
    cache = cache_directory() / "tuning" / decoder.manifest.engine_id
    held_out, others = asked[::3], [prompt for index, prompt in enumerate(asked) if index % 3]
    parts = split(record(decoder, others, grid, cache, started + 60 * minutes * RECORDING, _progress))
    latency = measure_latency(
        decoder, grid.widths, grid.depths, grid.max_nodes, progress=lambda share: _progress("measuring", round(100 * share), 100)
    )
    candidates, rate = fit(parts, latency, grid)
    candidates = train(candidates, parts, latency, grid, rate, learned, 60 * minutes * TRAINING, seed, _progress)
    ratios = confirm(decoder, held_out, candidates.policies(latency, grid.sizes), grid.new_tokens, started + 60 * minutes, _progress)
    simulated = simulate(candidates, parts.test, latency, grid)
    return tuning_result(decoder.manifest, threads, candidates, latency, ratios, simulated, parts.train_and_validation, grid)


def _progress(step: str, done: int, total: int) -> None:
    """A counter that overwrites itself on a terminal, one line per step elsewhere."""
    if sys.stderr.isatty():
        click.echo(f"\r{step}: {done}/{total}", err=True, nl=done == total)
    elif done in (1, total):
        click.echo(f"{step}: {'done' if done == total else 'begins'}", err=True)


def main() -> None:
    """Entry point of resps-tune."""
    sys.exit(run_command(command, "resps-tune"))
