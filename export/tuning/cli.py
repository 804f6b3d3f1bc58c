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

if TYPE_CHECKING:
    from policy import Surface
    from runtime import Decoder

    from .tune import Found

SHARE_OF_RECORDING = 0.5  # of the minutes; the rest measures and confirms
MARGIN = 1.0  # a policy must reach this many times the best fixed tree's tokens/s to be installed


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--engine-dir", type=click.Path(path_type=Path), default=Path("engines"), envvar="RESPS_ENGINE_DIR", show_default=True,
              show_envvar=True, help="Engine directory, or a parent that holds exactly one.")  # fmt: skip
@click.option("--prompts", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Your own: JSON lines with prompt or turns, or a prompt a line [default: a collection of all sorts].")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(min=0.1), default=20.0, show_default=True, help="About how long it may take.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of a pass [default: physical cores]; tuning holds for this many.")
@click.option("--dry-run", is_flag=True, help="Install nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-v", "--verbose", count=True, help="Say what is done; -vv shows tracebacks.")
@click.version_option(package_name="resps")
def command(
    engine_dir: Path, prompts: Path | None, minutes: float, threads: int | None, dry_run: bool, as_json: bool, verbose: int
) -> None:
    """Find the fastest policy for an engine on this machine, and install it if it beats the best fixed tree.

    May be interrupted and started again: recorded answers are kept, and the engine changes only at the very end.
    """
    set_verbosity(verbose)
    from runtime import Decoder
    from runtime.cpu import physical_cores
    from runtime.manifest import find_engine_dir

    from .install import install
    from .prompts import read_prompts

    asked = read_prompts(prompts)
    directory, threads = find_engine_dir(engine_dir), threads or physical_cores()
    with Decoder(directory, policy="fixed", threads=threads) as decoder:
        found, surface, ratios = _tuned(decoder, asked, minutes)
        tuning = _decided(found, surface, ratios, threads)
        if not dry_run:
            install(directory, decoder.manifest, tuning)
    click.echo(json.dumps(dataclasses.asdict(tuning)) if as_json else "\n".join(summary(tuning, found)))


def _tuned(decoder: Decoder, asked: list[str], minutes: float) -> tuple[Found, Surface, dict[str, float]]:
    from runtime.manifest import engine_id

    from ..fetch import cache_directory
    from .errors import TuningError
    from .surface import measure
    from .tune import LEAST_PROMPTS, Grid, candidates, confirm, fit, record

    if decoder.draft != "eagle":
        raise TuningError("the engine has no EAGLE-3 draft, so there is nothing to tune — export with --draft-weights")
    if len(asked) < LEAST_PROMPTS:
        raise TuningError(f"{len(asked)} prompts are too few, tuning needs {LEAST_PROMPTS} — give more with --prompts")
    started, grid = perf_counter(), Grid(nodes=min(16, decoder.manifest.limits.tree_nodes))
    sizes = decoder.manifest.tree_sizes if decoder.manifest.tensorrt else None
    cache = cache_directory() / "tuning" / engine_id(decoder.manifest)
    held_out, others = asked[::3], [prompt for index, prompt in enumerate(asked) if index % 3]
    answers = record(decoder, others, grid, cache, started + 60 * minutes * SHARE_OF_RECORDING, _progress)
    surface = measure(decoder, grid.widths, grid.depths, grid.nodes, progress=lambda share: _progress("measuring", round(100 * share), 100))
    found = fit(answers, surface, grid, sizes)
    policies = candidates(found, surface, sizes)
    return found, surface, confirm(decoder, held_out, policies, grid.new_tokens, started + 60 * minutes, _progress)


def _decided(found: Found, surface: Surface, ratios: dict[str, float], threads: int) -> Any:
    from runtime.cpu import processor_name
    from runtime.manifest import Tuning

    best = "none" if max(ratios.values()) <= 1.0 else "cost-model" if ratios["cost-model"] >= MARGIN * ratios["fixed"] else "fixed"
    nodes, depth, width = found.static.nodes, found.static.depth, found.static.width
    return Tuning(processor_name(), threads, best, (nodes, depth, width), found.calibration, surface, ratios)


def summary(tuning: Any, found: Found) -> list[str]:
    """For people."""
    names = {"none": "plain decoding", "fixed": f"fixed tree {','.join(map(str, tuning.static))}", "cost-model": "cost model"}
    plain = found.held_out["none"]
    lines = ["                          held-out prompts, over plain decoding", "                          by the clock   recorded answers"]
    lines += [f"{label:<24}  {tuning.ratios[name]:>9.3f}x  {found.held_out[name] / plain:>14.3f}x" for name, label in names.items()]
    verdict = {
        "cost-model": "the cost model is installed: it is at least as fast as the best fixed tree",
        "fixed": f"the fixed tree {','.join(map(str, tuning.static))} is installed: no policy was faster than it",
        "none": "plain decoding is installed: drafting gains nothing here",
    }
    return [*lines, verdict[tuning.policy]]


def _progress(step: str, done: int, total: int) -> None:
    """A counter that overwrites itself on a terminal, one line per step elsewhere."""
    if sys.stderr.isatty():
        click.echo(f"\r{step}: {done}/{total}", err=True, nl=done == total)
    elif done in (1, total):
        click.echo(f"{step}: {'done' if done == total else 'begins'}", err=True)


def main() -> None:
    """Entry point of resps-tune."""
    sys.exit(run_command(command, "resps-tune"))
