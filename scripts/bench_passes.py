"""Milliseconds of one pass of the target by rows, and the peak memory of a whole resps-run.

    python scripts/bench_passes.py --engine-dir engines/smollm2-135m [--engine-dir engines/smollm2-135m-int8 ...]

Directories take turns, each turn in a process of its own; medians. The context is about 230 tokens, and all rows go through the head.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `scripts` is no installed package

from runtime import Decoder
from runtime.tree import Tree

ROWS = (1, 2, 4, 8, 16, 32, 64)


def pass_milliseconds(engine_dir: Path, threads: int) -> dict[int, float]:
    """Median time of one verify pass by rows."""
    times: dict[int, list[float]] = {rows: [] for rows in ROWS}
    with Decoder(engine_dir, policy="none", draft="none", threads=threads) as decoder:
        target = decoder._target
        target.cache.truncate(0)
        list(target.prefill(list(range(100, 292 - max(ROWS)))))
        for _ in range(5):
            for rows in ROWS:
                tree = Tree.chain(list(range(100, 100 + rows)))
                target.verify(tree)
                for _ in range(5):
                    started = time.perf_counter()
                    target.verify(tree)
                    times[rows].append(time.perf_counter() - started)
    return {rows: 1000 * statistics.median(each) for rows, each in times.items()}


def peak_memory_mib(engine_dir: Path) -> float:
    """Peak memory of a whole resps-run process."""
    code = (
        "import sys; from pathlib import Path; from runtime.cli import command; from runtime.console import run_command;"
        f"run_command(command, 'resps-run', ['--engine-dir', {str(engine_dir)!r}, '--no-stream', '--max-new-tokens', '128', 'Rome']);"
        "sys.stderr.write(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stderr) / 1024


@click.command()
@click.option("--engine-dir", "engine_dirs", type=click.Path(path_type=Path, exists=True), multiple=True, required=True)
@click.option("--turns", default=5, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only-turn", is_flag=True, hidden=True)
def main(engine_dirs: tuple[Path, ...], turns: int, threads: int, only_turn: bool) -> None:
    """Print a table in Markdown."""
    if only_turn:
        click.echo(json.dumps(pass_milliseconds(engine_dirs[0], threads)))
        return
    found: dict[Path, list[dict[str, float]]] = {directory: [] for directory in engine_dirs}
    for _ in range(turns):
        for directory in engine_dirs:
            again = [sys.executable, sys.argv[0], "--only-turn", "--engine-dir", str(directory), "--threads", str(threads)]
            done = subprocess.run(again, capture_output=True, text=True, check=True)
            found[directory].append(json.loads(done.stdout.splitlines()[-1]))
    click.echo(f"| engine | {' | '.join(map(str, ROWS))} | peak memory of resps-run |\n{'| --- ' * (len(ROWS) + 2)}|")
    for directory, each in found.items():
        medians = [statistics.median(turn[str(rows)] for turn in each) for rows in ROWS]
        cells = " | ".join(f"{value:.1f}" for value in medians)
        click.echo(f"| {directory.name} | {cells} | {peak_memory_mib(directory):.0f} MiB |")


if __name__ == "__main__":
    main()
