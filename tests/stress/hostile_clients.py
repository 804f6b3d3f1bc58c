"""Honest clients beside slow, broken and hostile ones: what does it cost the honest, and does anything get through?

    python -m tests.stress.hostile_clients --engine-dir engines/smollm2-135m

Starts a server with API keys. Honest clients ask alone and beside the hostile ones, in turns. Prints one JSON object; the exit code is 1 if
an honest request failed or got another text, a wrong key reached an engine, the server ended, or memory or time went beyond the limits.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import httpx

from tests.support.serve.process import running

KEY = "the-honest-key"
RATIO, GROWTH_MIB = 1.2, 64  # of the honest clients' p99; of the server's memory while it is attacked
CONNECTIONS = 128


@dataclass
class Seen:
    """Seconds of the honest requests, alone and beside the hostile ones; their texts by prompt; what went wrong."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    asked: int = 0


async def honest(url: str, count: int, seconds: float, seen: Seen, times: list[float]) -> None:
    """``count`` clients that ask one request after the other, for ``seconds``."""
    end = time.monotonic() + seconds

    async def client(http: httpx.AsyncClient, name: int) -> None:
        at = 0
        while time.monotonic() < end:
            prompt = f"Client {name} asks number {at % 4}: tell me about the sea."
            began = time.monotonic()
            seen.asked += 1
            at += 1
            try:
                response = await http.post("/completions", json={"prompt": prompt, "max_tokens": 16, "temperature": 0})
                text = response.json()["choices"][0]["text"]
            except (httpx.HTTPError, KeyError, ValueError) as error:
                seen.wrong.append(f"{type(error).__name__}: {error}")
                continue
            times.append(time.monotonic() - began)
            if seen.texts.setdefault(prompt, text) != text:
                seen.wrong.append(f"{prompt} got another text")

    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as http:
        await asyncio.gather(*(client(http, name) for name in range(count)))


def memory_mib(process: int) -> int:
    """Resident memory."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[0]) >> 10


def metric(url: str, line: str) -> float:
    page = httpx.get(f"{url.removesuffix('/v1')}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    return sum(float(each.rpartition(" ")[2]) for each in page.splitlines() if each.startswith(line))


def turn(url: str, clients: int, hostile: int, seconds: float, share: float, seen: Seen) -> None:
    """Honest clients alone, then beside the hostile ones."""
    asyncio.run(honest(url, clients, seconds, seen, seen.alone))
    place = urlsplit(url)
    line = [
        sys.executable,
        "-m",
        "tests.support.serve.hostile",
        str(place.hostname),
        str(place.port),
        str(hostile),
        str(seconds + 2),
        str(share),
    ]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as attackers:
        time.sleep(1.0)  # until they are there
        asyncio.run(honest(url, clients, seconds, seen, seen.beside))
        output = attackers.communicate(timeout=60)[0]
    if attackers.returncode:
        seen.wrong.append("a hostile client was answered")
    else:
        seen.tried.update(json.loads(output))


def soak(engine_dir: Path, clients: int, hostile: int, seconds: float, turns: int, share: float) -> dict[str, Any]:
    """The report."""
    seen = Seen()
    options = ("--lanes", str(clients), "--max-connections", str(CONNECTIONS), "--head-seconds", "5")
    with (
        tempfile.TemporaryDirectory() as folder,
        running(engine_dir, *options, RESPS_API_KEYS=f"honest={KEY}", HOME=folder) as (process, url),
    ):
        asyncio.run(honest(url, clients, 5.0, seen, []))
        before = memory_mib(process.pid)
        for _ in range(turns):
            turn(url, clients, hostile, seconds, share, seen)
        after, answered = memory_mib(process.pid), metric(url, 'resps:requests_total{outcome="length"}')
        refused, lanes = metric(url, 'resps:requests_total{outcome="unauthorized"}'), metric(url, "resps:request_queue_time_seconds_count")
        alive = process.poll() is None
    ratios = {name: quantile(seen.beside, part) / quantile(seen.alone, part) for name, part in (("p50", 0.5), ("p99", 0.99))}
    ok = not seen.wrong and alive and lanes == seen.asked and ratios["p99"] <= RATIO and after - before <= GROWTH_MIB
    return {
        "ok": ok,
        "honest": {"clients": clients, "requests": seen.asked, "answered": answered, "wrong": seen.wrong[:3]},
        "seconds": {
            name: [round(quantile(times, part), 3) for part in (0.5, 0.99)]
            for name, times in (("alone", seen.alone), ("beside", seen.beside))
        },
        "ratio": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "hostile": {"clients": hostile, "share_of_a_core": share, "tried": dict(seen.tried), "refused": refused},
        "reached_an_engine": lanes - seen.asked,
        "memory_mib": [before, after],
    }


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--clients", type=click.IntRange(min=1), default=8, show_default=True, help="Honest ones.")
@click.option("--hostile", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--seconds", type=float, default=30.0, show_default=True, help="Of each half of a turn.")
@click.option("--turns", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True), default=0.1, show_default=True, help="Of a core, for the hostile clients."
)
def main(engine_dir: Path, clients: int, hostile: int, seconds: float, turns: int, share: float) -> None:
    """Attack a server and measure what its honest clients notice."""
    report = soak(engine_dir, clients, hostile, seconds, turns, share)
    click.echo(json.dumps(report))
    sys.exit(0 if report["ok"] else 1)


if __name__ == "__main__":
    os.environ.pop("RESPS_API_KEYS", None)
    main()
