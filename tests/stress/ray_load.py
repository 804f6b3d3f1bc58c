"""Loads replicas behind Ray Serve and kills one: every answer must be right, every other request must be told that it may be sent again.

    python -m tests.stress.ray_load --engine-dir engines/smollm2-135m --replicas 3 --clients 32 --seconds 120

Starts a cluster of this machine. Answers are compared with those of the same replicas without load. Prints one JSON object; the exit code
is 1 if anything was wrong, or if the throughput did not come back once the new replica had started.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from tests.stress.load_serve import LoadReport, load
from tests.support.serve.ray_cluster import processes, serving, wait_for_replicas

BACK = 0.9  # of the throughput before the kill


class Meter:
    """Tokens of finished answers over time, in ``seen``."""

    def __init__(self, seen: LoadReport) -> None:
        self._seen, self._marks = seen, list[tuple[float, int]]()

    def mark(self) -> float:
        """Note the time and the tokens so far."""
        self._marks.append((time.monotonic(), self._seen.tokens))
        return self._marks[-1][0]

    def rates(self) -> list[float]:
        """Tokens/s between marks."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return [round((tokens - before) / max(1e-9, now - then), 1) for (then, before), (now, tokens) in pairs]


async def killed_under_load(url: str, replicas: int, clients: int, seconds: float, seen: LoadReport) -> dict[str, Any]:
    """Load the application at ``url`` and kill one replica after half of the time."""
    meter, victim, restart = Meter(seen), min(processes(url)), 0.0

    async def kill() -> None:
        nonlocal restart
        killed_at = meter.mark()
        os.kill(victim, signal.SIGKILL)
        await asyncio.to_thread(wait_for_replicas, url, replicas, victim)
        restart = round(meter.mark() - killed_at, 2)

    began = asyncio.create_task(load(url + "/v1", clients, seconds, seen, kill))
    while not seen.tokens and not began.done():
        await asyncio.sleep(0.05)
    meter.mark()
    await began
    meter.mark()
    before, meanwhile, after = (*meter.rates(), 0.0, 0.0, 0.0)[:3]
    return {"restart_seconds": restart, "tokens_per_second": {"before": before, "meanwhile": meanwhile, "after": after}}


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--replicas", type=click.IntRange(min=2), default=3, show_default=True)
@click.option("--lanes", type=click.IntRange(min=1), default=8, show_default=True, help="Of each replica.")
@click.option("--clients", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--seconds", type=float, default=120.0, show_default=True)
def main(engine_dir: Path, replicas: int, lanes: int, clients: int, seconds: float) -> None:
    """Kill a replica under load and count what the clients saw."""
    seen = LoadReport()
    with serving(engine_dir, replicas, lanes=lanes) as url:
        wait_for_replicas(url, replicas)
        found = asyncio.run(killed_under_load(url, replicas, clients, seconds, seen))
    rates = found["tokens_per_second"]
    ok = not seen.wrong and seen.counts["answered"] > 0 and rates["after"] >= BACK * rates["before"]
    counts = {name: seen.counts[name] for name in ("answered", "told", "left", "lost")}
    report = {"ok": ok, "replicas": replicas, "clients": clients, **counts, "wrong": len(seen.wrong), "refused": dict(seen.refused)}
    click.echo(json.dumps({**report, **found, "first_wrong": seen.wrong[:3]}))
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
