"""Do repeated tunes of an engine install the same policy, or one that is equal to it within their intervals?

    python -m scripts.lab.policies.repeated_tunes --engine-dir DIR

Calls `resps-tune --dry-run` one time after another. They share the recorded answers in the cache directory, so they differ by what they
measure, train and time; with --fresh each records its own. Two policies are equal in a tune if its estimate of one lies in its interval of
the other, both over its best fixed tree. Two tunes agree if they install the same policy, or if both find their two policies equal. Fixed
trees that differ are compared by what the two tunes say of them over plain decoding. Use a quiet machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import click

from runtime.console import run_command
from scripts import options

TUNE = "from export.tuning.cli import main; main()"
KINDS = ("greedy", "sampled")
Interval = tuple[float, float]


@dataclass(frozen=True)
class Installed:
    """What a tune would install for one kind of requests. ``tree``: its best fixed tree. ``intervals``: of the other policies over it."""

    policy: str
    tree: Sequence[int]
    intervals: Mapping[str, Sequence[float]]

    def interval(self, name: str) -> Interval:
        """Over the fixed tree; not numbers, which equal nothing, if there is none."""
        low, high = (1.0, 1.0) if name == "fixed" else self.intervals.get(name, (nan, nan))
        return low, high

    @property
    def tree_over_plain(self) -> Interval:
        low, high = self.interval("none")
        return 1 / high, 1 / low

    def __str__(self) -> str:
        low, high = self.interval(self.policy)
        return f"{self.policy}, {low:.3f} to {high:.3f} over the tree {','.join(map(str, self.tree))}"


def installed(tuning: Mapping[str, Any]) -> dict[str, Installed]:
    """By kind of requests. ``tuning``: what `resps-tune --json` prints."""
    return {
        kind: Installed(part["policy"], part["static"], part["intervals"])
        for kind, part in zip(KINDS, (tuning, tuning["sampled"]), strict=True)
    }


def equal(one: Interval, other: Interval) -> bool:
    """Whether the middle of one interval lies in the other."""
    return any(low <= sqrt(first * last) <= high for (low, high), (first, last) in ((one, other), (other, one)))


def agreement(one: Installed, other: Installed) -> str:
    """How what two tunes install compares: the same, equal, or different."""
    if one.policy == other.policy and (one.policy != "fixed" or one.tree == other.tree):
        return "the same"
    if one.policy == other.policy:
        return "equal" if equal(one.tree_over_plain, other.tree_over_plain) else "different"
    return "equal" if all(equal(each.interval(one.policy), each.interval(other.policy)) for each in (one, other)) else "different"


def described(tunes: Sequence[Mapping[str, Installed]]) -> list[str]:
    """What each tune installs, and how every two of them compare."""
    lines = [f"tune {number}, {kind}: {found[kind]}" for kind in KINDS for number, found in enumerate(tunes, 1)]
    for kind in KINDS:
        pairs = [agreement(one[kind], other[kind]) for one, other in combinations(tunes, 2)]
        lines.append(f"{kind}, pairs of tunes: " + ", ".join(f"{pairs.count(each)} {each}" for each in ("the same", "equal", "different")))
    return lines


@click.command()
@options.engine_dir
@click.option("--tunes", default=5, show_default=True)
@click.option("--tune-minutes", default=5.0, show_default=True, help="Of one tune.")
@click.option("--minutes", default=30.0, show_default=True, help="A tune that runs then is ended and not counted.")
@click.option("--fresh", is_flag=True, help="Each tune records its own answers.")
@click.option("--threads", default=2, show_default=True)
def main(engine_dir: Path, tunes: int, tune_minutes: float, minutes: float, fresh: bool, threads: int) -> None:
    """Print what each tune would install, and whether they agree."""
    given = ["--engine-dir", str(engine_dir), "--minutes", str(tune_minutes), "--threads", str(threads), "--dry-run", "--json"]
    found, deadline = list[dict[str, Installed]](), perf_counter() + 60 * minutes
    for _ in range(tunes):
        with TemporaryDirectory() as own:
            variables = {**os.environ, "RESPS_CACHE": own} if fresh else None
            try:
                done = subprocess.run(
                    [sys.executable, "-c", TUNE, *given],
                    env=variables,
                    stdout=subprocess.PIPE,
                    check=True,
                    timeout=max(0.0, deadline - perf_counter()),
                )
            except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
                why = "the minutes are over" if isinstance(error, subprocess.TimeoutExpired) else "resps-tune failed"
                click.echo(f"ended after {len(found)} tunes: {why}", err=True)
                break
        found.append(installed(json.loads(done.stdout)))
    click.echo("\n".join(described(found)))


if __name__ == "__main__":
    sys.exit(run_command(main, "repeated_tunes"))
