"""Loads one server with many clients: every answer must be right, none may be lost, every refusal must say why.

    python -m tests.stress.load_serve --engine-dir engines/smollm2-135m --clients 64 --seconds 300
    python -m tests.stress.load_serve --url http://127.0.0.1:8000/v1 --clients 64 --seconds 300

Answers are compared with those of the same server without load. With --engine-dir the server is started here, killed (SIGKILL) after half
of the time and started again. Prints one JSON object; the exit code is 1 if anything was wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx

ROOT = Path(__file__).resolve().parents[2]
LATE = 0.5  # seconds of tolerance for time-outs on a busy machine
TOPICS = ("the sea", "a bicycle", "snow", "bread", "the moon", "iron", "a library", "wind")


@dataclass(frozen=True)
class LoadRequest:
    """One request to the API."""

    path: str
    body: dict[str, Any]


@dataclass
class LoadReport:
    """What all clients saw together."""

    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    queued: list[float] = field(default_factory=list)
    tokens: int = 0
    down: bool = False  # between the kill and the restart, connections may fail
    restart_seconds: float | None = None


def load_requests() -> list[LoadRequest]:
    """Chats and completions, greedy and sampled, with stop strings, log-probabilities, and without speculation."""
    made = []
    for at, topic in enumerate(TOPICS):
        chat = {"messages": [{"role": "user", "content": f"Tell me about {topic}."}]}
        text = {"prompt": f"A short story about {topic}. Once upon a time"}
        for path, body, more in (
            ("chat/completions", chat, {"temperature": 0, "max_tokens": 8 + 5 * at}),
            ("chat/completions", chat, {"temperature": 0.8, "seed": at, "top_p": 0.9, "max_tokens": 24}),
            ("completions", text, {"temperature": 0, "max_tokens": 30, "stop": [".", "the"]}),
            ("completions", text, {"temperature": 1.0, "seed": at, "max_tokens": 12, "speculation": False}),
            ("completions", text, {"temperature": 0, "max_tokens": 6, "logprobs": 2}),
        ):
            made.append(LoadRequest(path, {**body, **more}))
    return made


async def ask(http: httpx.AsyncClient, request: LoadRequest, stream: bool, leave: bool) -> tuple[int, str, dict[str, Any]]:
    """Status, text and the field "resps" of the answer; for a refusal its code instead of the text. ``leave``: disconnect after the second
    event."""
    async with http.stream("POST", request.path, json={**request.body, "stream": stream}) as response:
        if response.status_code != 200:
            try:
                code = json.loads(await response.aread())["error"]["code"]
            except (ValueError, KeyError):
                code = "no error in OpenAI's form"
            return response.status_code, code, {"retry": float(response.headers.get("retry-after", "nan"))}
        if not stream:
            whole = json.loads(await response.aread())
            choice = whole["choices"][0]
            return 200, choice["message"]["content"] if "message" in choice else choice["text"], whole["resps"]
        text, ours, done, events = "", {}, False, 0
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line:
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    return 500, event["error"]["code"], {}
                choice = event["choices"][0]
                text += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
                ours = event.get("resps", ours)
            events += 1
            if leave and events > 2:
                return 0, text, {}
        if not done or not ours:
            raise EOFError("the stream has no end")
        return 200, text, ours


async def client(number: int, url: str, known: list[tuple[LoadRequest, str]], until: float, seen: LoadReport) -> None:
    """Send random requests until the time ``until``."""
    dice = random.Random(number)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(max_connections=1)) as http:
        while time.monotonic() < until:
            request, expected = dice.choice(known)
            stream, leave = dice.random() < 0.6, dice.random() < 0.05
            try:
                status, text, ours = await ask(http, request, stream, stream and leave)
            except (httpx.TransportError, EOFError) as error:
                if not seen.down:
                    seen.counts["lost"] += 1
                    seen.wrong.append(f"{type(error).__name__}: {error}")
                seen.counts["cut_by_kill"] += seen.down and not isinstance(error, httpx.ConnectError)
                await asyncio.sleep(0.2)
                continue
            if status == 0:
                seen.counts["left"] += 1
                if not expected.startswith(text):
                    seen.wrong.append(f"a part: {text!r} is not a prefix of {expected!r}")
            elif status == 200:
                seen.counts["answered"] += 1
                seen.tokens += ours["stats"]["new_tokens"]
                seen.queued.append(ours["queue_seconds"])
                if text != expected:
                    seen.wrong.append(f"{text!r} is not {expected!r}")
            elif text in ("queue_full", "queue_timeout") and ours["retry"] >= 1:
                seen.refused[f"{status} {text}"] += 1
                await asyncio.sleep(min(ours["retry"], 2.0) * dice.random())
            elif text == "replica_lost":  # behind Ray Serve: it may be sent again
                seen.counts["told"] += 1
            else:
                seen.wrong.append(f"status {status}, {text}")


async def start(engine_dir: Path, port: int, options: tuple[str, ...]) -> tuple[Process, str]:
    """The server process and its URL."""
    line = [
        sys.executable,
        "-c",
        "from runtime.serve.cli import main; main()",
        "--engine-dir",
        str(engine_dir),
        "--port",
        str(port),
        *options,
    ]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = await asyncio.create_subprocess_exec(*line, stdout=DEVNULL, stderr=PIPE, env={**os.environ, "PYTHONPATH": path})
    assert process.stderr is not None
    while b"http://" not in (said := await process.stderr.readline()):
        if not said:
            raise click.ClickException("the server did not start")
    return process, said.split()[-1].decode()


async def kill_and_restart(engine_dir: Path, url: str, options: tuple[str, ...], process: Process, seen: LoadReport) -> Process:
    """SIGKILL, then a new server on the same port; records the seconds until it answers."""
    seen.down, began = True, time.monotonic()
    process.kill()
    await process.wait()
    process, _ = await start(engine_dir, int(url.split(":")[-1].partition("/")[0]), options)
    async with httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("models")).status_code == 200
    seen.restart_seconds = round(time.monotonic() - began, 2)
    await asyncio.sleep(0.5)  # for clients that notice the kill late
    seen.down = False
    return process


async def load(url: str, count: int, seconds: float, seen: LoadReport, halfway: Any = None) -> None:
    """Every request once without load, then all clients at once."""
    async with httpx.AsyncClient(base_url=url, timeout=None) as http:
        known = []
        for request in load_requests():
            status, text, _ = await ask(http, request, False, False)
            assert status == 200, text
            known.append((request, text))
    until = time.monotonic() + seconds
    clients = [asyncio.create_task(client(number, url, known, until, seen)) for number in range(count)]
    if halfway is not None:
        await asyncio.sleep(seconds / 2)
        await halfway()
    await asyncio.gather(*clients)


async def run(
    engine_dir: Path | None, url: str | None, count: int, seconds: float, queue_seconds: float, options: tuple[str, ...]
) -> LoadReport:
    seen = LoadReport()
    if url is not None:
        await load(url, count, seconds, seen)
        return seen
    assert engine_dir is not None
    options = (*options, "--queue-seconds", str(queue_seconds))
    process, url = await start(engine_dir, 0, options)

    async def halfway() -> None:
        nonlocal process
        process = await kill_and_restart(engine_dir, str(url), options, process, seen)

    try:
        await load(url, count, seconds, seen, halfway)
        process.send_signal(signal.SIGTERM)
        seen.counts["exit_code"] = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return seen


def share(values: list[float], part: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(part * len(values)))], 3) if values else 0.0


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path, exists=True), help="Start a server here, and kill it after half of the time.")
@click.option("--url", help="Use a running server: http://HOST:PORT/v1")
@click.option("--clients", "count", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--seconds", type=float, default=60.0, show_default=True)
@click.option("--queue-seconds", type=float, default=5.0, show_default=True, help="The server's option; a longer wait is an error.")
@click.option("--replicas", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--lanes", type=click.IntRange(min=1), help="Of each replica.  [default: the server's]")
@click.option("--queue", type=click.IntRange(min=0), default=48, show_default=True)
def main(
    engine_dir: Path | None,
    url: str | None,
    count: int,
    seconds: float,
    queue_seconds: float,
    replicas: int,
    lanes: int | None,
    queue: int,
) -> None:
    """Load a server and compare every answer."""
    if (engine_dir is None) == (url is None):
        raise click.UsageError("give --engine-dir or --url")
    options = ("--replicas", str(replicas), *(("--lanes", str(lanes)) if lanes else ()), "--queue", str(queue))
    seen = asyncio.run(run(engine_dir, url, count, seconds, queue_seconds, options))
    late = sum(each > queue_seconds + LATE for each in seen.queued)
    ok = not seen.wrong and not late and seen.counts["answered"] > 0 and seen.counts["exit_code"] == 0
    report = {
        "ok": ok,
        "clients": count,
        "seconds": seconds,
        **{name: seen.counts[name] for name in ("answered", "left", "lost", "cut_by_kill", "exit_code")},
        "wrong": len(seen.wrong),
        "refused": dict(seen.refused),
        "tokens": seen.tokens,
        "queue_seconds": {
            "configured": queue_seconds,
            **{f"p{part}": share(seen.queued, part / 100) for part in (50, 99, 100)},
            "late": late,
        },
        "restart_seconds": seen.restart_seconds,
        "first_wrong": seen.wrong[:3],
    }
    click.echo(json.dumps(report))
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
