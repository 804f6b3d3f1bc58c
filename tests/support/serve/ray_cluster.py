"""Serves an engine on a local Ray cluster, and prints what clients saw, as JSON after "result:".

    python -m tests.support.serve.ray_cluster ENGINE_DIR PROMPT...

A program, because Ray starts threads and processes and changes the logging of the process that runs it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.stress.load_serve import LoadReport, load

START_SECONDS = 240
REPLICAS, CLIENTS, LOAD_SECONDS = 3, 32, 4.0


@contextmanager
def serving(engine_dir: Path, replicas: int, **arguments: Any) -> Iterator[str]:
    """A cluster of this machine with the application on it. Yields its URL. ``arguments``: further ones of the application."""
    import ray
    from ray import serve

    from runtime.serve.ray.app import application
    from runtime.serve.ray.arguments import Arguments

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    given = Arguments(engine_dir=str(engine_dir), model_name="served", replicas=replicas, **arguments)
    ray.init(num_cpus=(given.max_replicas or replicas) * given.threads, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(given), name="resps")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def processes(url: str) -> set[int]:
    """The processes of the replicas that answer."""
    try:
        return {each["process"] for each in httpx.get(f"{url}/healthz", timeout=30).json()["replicas"]}
    except (httpx.TransportError, ValueError):  # Ray's own answer while it has no front
        return set()


def wait_for_replicas(url: str, count: int, killed: int | None = None) -> set[int]:
    """Wait until ``count`` replicas answer, ``killed`` not counted. Returns their processes."""
    end = time.monotonic() + START_SECONDS
    while len(found := processes(url) - {killed}) < count:
        assert time.monotonic() < end, f"only {found} answer"
        time.sleep(0.1)
    return found


def samples(url: str, name: str, **labels: str) -> dict[str, float]:
    """The values of a metric by process."""
    page = httpx.get(f"{url}/metrics", timeout=60).text
    every = [each for family in text_string_to_metric_families(page) for each in family.samples]
    return {each.labels["process"]: each.value for each in every if each.name == name and labels.items() <= each.labels.items()}


def body(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 20, "temperature": 0, **more}


def complete(url: str, prompt: str) -> str:
    response = httpx.post(f"{url}/v1/completions", json=body(prompt), timeout=60)
    text: str = response.json()["choices"][0]["text"]
    return text


def stream(url: str, prompt: str) -> tuple[str, str]:
    """The text of a streamed answer, and the stream's last line."""
    response = httpx.post(f"{url}/v1/completions", json=body(prompt, stream=True), timeout=60)
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]), lines[-1]


def leave(url: str) -> None:
    """Leave after the first event of a long answer, and wait until a replica counts that."""
    asked = body("the cat sat", max_tokens=1000, ignore_eos=True, stream=True)
    with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=60) as response:
        next(response.iter_lines())
    while not any(samples(url, "resps:requests_total", outcome="disconnected").values()):
        time.sleep(0.1)


def readers_of_one_prompt(url: str) -> int:
    """How many replicas read a long prompt that is sent again and again."""
    before = samples(url, "resps:prompt_tokens_total")
    for _ in range(6):
        complete(url, "the cat sat on the mat and the dog sat on the log " * 4)
    return sum(value > before[process] for process, value in samples(url, "resps:prompt_tokens_total").items())


def under_load(url: str, before: set[int]) -> dict[str, Any]:
    """Kill one replica while many clients ask, each request once more than it has a replica."""
    seen, killed = LoadReport(), min(before)

    async def kill() -> None:
        os.kill(killed, signal.SIGKILL)

    asyncio.run(load(f"{url}/v1", CLIENTS, LOAD_SECONDS, seen, kill))
    after = wait_for_replicas(url, REPLICAS, killed)
    return {"wrong": seen.wrong[:3], "answered": seen.counts["answered"] > 0, "lost": seen.counts["lost"], "new": len(after - before)}


def outcome(url: str, prompts: Sequence[str]) -> dict[str, Any]:
    before = wait_for_replicas(url, REPLICAS)
    refused = httpx.post(f"{url}/v1/completions", json=body("the cat", best_of=2), timeout=60)
    leave(url)
    with ThreadPoolExecutor(8) as clients:
        texts = list(clients.map(lambda prompt: complete(url, prompt), prompts))
    return {
        "texts": texts,
        "stream": stream(url, prompts[0]),
        "refused": [refused.status_code, refused.json()["error"]["param"]],
        "reload": httpx.post(f"{url}/admin/reload", timeout=60).json()["error"]["code"],
        "readers": readers_of_one_prompt(url),
        "own_process": os.getpid() in before,
        "load": under_load(url, before),
    }


def main(engine_dir: str, *prompts: str) -> None:
    with serving(Path(engine_dir), REPLICAS, lanes=4) as url:
        print("result:", json.dumps(outcome(url, prompts)))  # noqa: T201  # Ray prints other lines


if __name__ == "__main__":
    main(*sys.argv[1:])
