"""What does the page cost? Throughput of resps-serve with another checkout, and with this one: page closed, watched, and open in a browser.

    python -m scripts.lab.page_cost --engine-dir DIR --before CHECKOUT [--lanes 8] [--browser]

Both servers run all the time, and one is asked at a time. A watcher is curl on /events. The browser runs at nice 19, so that what is
measured is the server. Needs curl, and for --browser chromium.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import click

from scripts import options

ROOT = Path(__file__).resolve().parents[2]
SUBJECTS = (
    "rivers",
    "snow",
    "bread",
    "the moon",
    "bridges",
    "bees",
    "glass",
    "chess",
    "tea",
    "maps",
    "wind",
    "salt",
    "owls",
    "ships",
    "clay",
    "rice",
)
BROWSER = (
    "nice -n 19 chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --remote-debugging-port=0"
)


@contextmanager
def server(checkout: Path, engine_dir: Path, lanes: int) -> Iterator[str]:
    """The base URL of resps-serve from ``checkout``."""
    line = [sys.executable, "-c", "from runtime.serve.cli import main; main()", "--engine-dir", str(engine_dir.resolve())]
    line += ["--port", "0", "--lanes", str(lanes), "--threads", "2"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=checkout, env={"PYTHONPATH": str(checkout), "PATH": ""}) as process:
        assert process.stderr is not None
        try:
            yield re.sub(r".* at (\S+)/v1\n", r"\1", process.stderr.readline())
        finally:
            process.kill()


def throughput(url: str, clients: int, tokens: int) -> float:
    """Tokens per second of as many answers at once as there are ``clients``."""

    def ask(subject: str) -> None:
        body = {"messages": [{"role": "user", "content": f"Write about {subject}."}], "temperature": 0, "max_tokens": tokens}
        request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps({**body, "ignore_eos": True}).encode())
        with urllib.request.urlopen(request, timeout=300) as response:
            assert json.load(response)["usage"]["completion_tokens"] == tokens

    started = perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(ask, SUBJECTS[:clients]))
    return clients * tokens / (perf_counter() - started)


@contextmanager
def beside(line: Sequence[str], seconds: float) -> Iterator[None]:
    """A process that runs meanwhile, for ``seconds`` already."""
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            sleep(seconds)
            yield
        finally:
            subprocess.run(["kill", "--", f"-{process.pid}"], check=False)


@click.command(context_settings={"show_default": True})
@options.engine_dir
@click.option("--before", type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True), help="Another checkout.")
@click.option("--lanes", type=click.IntRange(1, len(SUBJECTS)), default=8)
@click.option("--new-tokens", type=int, default=64)
@click.option("--seconds", type=float, default=180.0, help="As many turns as fit.")
@click.option("--browser", is_flag=True, help="Open the page in Chromium, too.")
def main(engine_dir: Path, before: Path | None, lanes: int, new_tokens: int, seconds: float, browser: bool) -> None:
    """Print each way's median ratio to the closed page of the same turn, the quartiles and the tokens/s."""
    with ExitStack() as opened:
        url = opened.enter_context(server(ROOT, engine_dir, lanes))
        profile = opened.enter_context(tempfile.TemporaryDirectory())
        ways: dict[str, Callable[[], float]] = {"closed": lambda: throughput(url, lanes, new_tokens)}
        if before is not None:
            old = opened.enter_context(server(before, engine_dir, lanes))
            ways["before"] = lambda: throughput(old, lanes, new_tokens)

        def watched(line: Sequence[str], warm: float) -> float:
            with beside(line, warm):
                return throughput(url, lanes, new_tokens)

        ways["watched"] = lambda: watched(["curl", "-sN", f"{url}/events"], 0.5)
        if browser:
            ways["browser"] = lambda: watched([*BROWSER.split(), f"--user-data-dir={profile}", f"{url}/ui/"], 4.0)
        for way in ways.values():
            way()
        found: dict[str, list[float]] = {name: [] for name in ways}
        ends = perf_counter() + seconds
        while perf_counter() < ends:
            order = list(ways) if len(found["closed"]) % 2 == 0 else list(ways)[::-1]
            for name in order:
                found[name].append(ways[name]())
    for name, speeds in found.items():
        ratios = sorted(one / other for one, other in zip(speeds, found["closed"], strict=True))
        quarters = f"{ratios[len(ratios) // 4]:.3f} to {ratios[3 * len(ratios) // 4]:.3f}"
        click.echo(f"{name}: {median(ratios):.3f} of closed ({quarters}), {median(speeds):.1f} tokens/s, {len(speeds)} turns")


if __name__ == "__main__":
    main()
