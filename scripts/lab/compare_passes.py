"""How long does a forward pass of the target take, by rows and context length, and in which of several engine directories?

    python -m scripts.lab.compare_passes --engine-dir BEFORE --engine-dir AFTER [--context 230 --context 1000] [--rows 1,2,4,8,16]

All directories are loaded into one process and alternate at every number of rows. Prints medians, and their ratios to the first
directory's.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import click
import numpy as np

from policy import PLAIN, FixedPolicy
from runtime import Decoder
from runtime.console import run_command
from runtime.decoding.tree import Tree
from scripts import options

REPEATS = 4  # timed passes of a turn, after an untimed one


def seconds_of_turn(decoder: Decoder, rows: int) -> list[float]:
    """Times of passes over a chain of ``rows`` behind the committed tokens."""
    target, tree, times = decoder.models.target, Tree.chain(list(range(100, 100 + rows))), []
    target.verify(tree)
    for _ in range(REPEATS):
        started = time.perf_counter()
        target.verify(tree)
        times.append(time.perf_counter() - started)
    return times


@click.command()
@options.engine_dirs
@click.option("--context", "contexts", type=int, multiple=True, default=(230, 1000), show_default=True, help="Tokens, the rows included.")
@click.option("--rows", default="1,2,3,4,5,6,8,12,16", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(engine_dirs: tuple[Path, ...], contexts: tuple[int, ...], rows: str, rounds: int, threads: int) -> None:
    """Print one line per context and number of rows."""
    decoders = [Decoder(directory, policy=FixedPolicy(PLAIN), draft="none", threads=threads) for directory in engine_dirs]
    counts, random = [int(count) for count in rows.split(",")], np.random.default_rng(0)
    for context in contexts:
        prompt = random.integers(0, min(decoder.manifest.shape.vocab for decoder in decoders), context - max(counts)).tolist()
        for decoder in decoders:
            decoder.models.target.cache.truncate(0)
            list(decoder.models.target.prefill(prompt))
        times: dict[tuple[int, int], list[float]] = defaultdict(list)
        for number in range(rounds):
            for count in counts:
                for index in range(len(decoders))[:: 1 if number % 2 else -1]:
                    times[count, index] += seconds_of_turn(decoders[index], count)
        for count in counts:
            medians = [1000 * statistics.median(times[count, index]) for index in range(len(decoders))]
            click.echo(
                f"context {context} rows {count:2d}: " + "  ".join(f"{median:6.2f} ms {median / medians[0]:.3f}x" for median in medians)
            )


if __name__ == "__main__":
    sys.exit(run_command(main, "compare_passes"))
