"""How fast is every policy in simulated time with several lanes, and over a day's arrivals, beside bounds?

    python -m scripts.lab.policies.policies_by_load --engine-dir DIR QUESTIONS.jsonl...

Rounds of several lanes are measured first, so use a quiet machine. Trees are fitted to the prompts of `resps-tune`, never to the questions.
Recorded answers are kept in the cache directory.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from time import perf_counter

import click

from export.checkpoints.fetch import cache_directory
from export.tuning.load.compare import Setting, compare, described, fit_load
from export.tuning.prompts import read_prompts
from export.tuning.replay.grid import grid_for
from export.tuning.replay.lanes_latency import measure_lanes
from export.tuning.replay.record import record
from export.tuning.replay.simulation import fixed_trees
from policy import TreeSpec
from runtime import Decoder
from runtime.console import run_command
from scripts import options

MEASURING = 60.0  # seconds
NO_DEADLINE = float("inf")


@click.command()
@options.engine_dir
@click.option("--questions", default=6, show_default=True, help="Number of questions of each set; only first turns are used.")
@click.option("--threads", default=2, show_default=True)
@click.option("--lanes", "loads", multiple=True, type=click.IntRange(min=1), default=(1, 2, 4, 8), show_default=True)
@click.argument("sets", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(engine_dir: Path, questions: int, threads: int, loads: tuple[int, ...], sets: tuple[Path, ...]) -> None:
    """Print tokens per busy second over plain decoding, and the 99th percentile of a token's time."""
    with Decoder(engine_dir, lanes=max(2, *loads), policy="none", threads=threads) as decoder:
        grid = grid_for(decoder.manifest)
        latency = measure_lanes(decoder, grid.widths, grid.depths, perf_counter() + MEASURING)
    with Decoder(engine_dir, policy="none", threads=threads) as decoder:
        cache, default = cache_directory() / "tuning" / decoder.manifest.engine_id, decoder.default_tree
        prompts = [prompt for file in sets for prompt in read_prompts(file)[:questions]]
        train, test = (record(decoder, each, grid, cache, NO_DEADLINE, _silent, None, 1) for each in (read_prompts(None), prompts))
    random.Random(0).shuffle(test)
    trees = fixed_trees(grid.widths, grid.depths, grid.max_nodes, grid.sizes)
    setting = Setting(latency, trees, default, TreeSpec(*grid.largest_trees[-1]))
    fitted = fit_load(train, setting, loads)
    click.echo("\n".join(described(compare(test * 2, setting, fitted, loads), fitted, default)))


def _silent(step: str, done: int, steps: int) -> None:
    """Shows nothing."""


if __name__ == "__main__":
    sys.exit(run_command(main, "policies_by_load"))
