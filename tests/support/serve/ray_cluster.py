"""Serves an engine on a local Ray cluster, kills one server process and prints what the clients saw, as JSON after "result:".

    python -m tests.support.serve.ray_cluster ENGINE_DIR PORT PROMPT...

A program, because Ray starts threads and processes and changes the logging of the process that runs it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import ray
from ray import serve

from runtime.serve.ray_app import Arguments, application

RESTART_SECONDS = 240


def body(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 20, "temperature": 0, **more}


def complete(url: str, prompt: str) -> str:
    response = httpx.post(f"{url}/v1/completions", json=body(prompt), timeout=60)
    text: str = response.json()["choices"][0]["text"]
    return text


def complete_all(url: str, prompts: Sequence[str]) -> list[str]:
    """The answers to ``prompts``, asked by eight clients at once."""
    with ThreadPoolExecutor(8) as clients:
        return list(clients.map(lambda prompt: complete(url, prompt), prompts))


def stream(url: str, prompt: str) -> tuple[str, str]:
    """The text of a streamed answer, and the stream's last line."""
    response = httpx.post(f"{url}/v1/completions", json=body(prompt, stream=True), timeout=60)
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]), lines[-1]


def server_processes(url: str, count: int, killed: Collection[int] = ()) -> set[int]:
    """Wait until ``count`` processes answer, those in ``killed`` not counted. Returns their process ids."""
    end, found = time.monotonic() + RESTART_SECONDS, set[int]()
    while len(found) < count:
        assert time.monotonic() < end, f"{found} answered, {killed} were killed"
        with suppress(httpx.TransportError, ValueError):  # while Ray has not noticed that the process is dead
            found.add(httpx.get(f"{url}/healthz", timeout=10).json()["process"])
        found -= set(killed)
        time.sleep(0.02)
    return found


def outcome(url: str, prompts: Sequence[str]) -> dict[str, Any]:
    before = server_processes(url, 2)
    refused = httpx.post(f"{url}/v1/completions", json=body("the cat", best_of=2), timeout=60)
    seen: dict[str, Any] = {
        "texts": complete_all(url, prompts),
        "stream": stream(url, prompts[0]),
        "refused": [refused.status_code, refused.json()["error"]["param"]],
        "replicas": httpx.get(f"{url}/healthz", timeout=10).json()["replicas"],
    }
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    after = server_processes(url, 2, [killed])
    return seen | {
        "texts_after_kill": complete_all(url, prompts),
        "processes": len(before | after),
        "own_process": os.getpid() in before | after,
    }


def main(engine_dir: str, port: int, *prompts: str) -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    arguments = Arguments(engine_dir=engine_dir, model_name="tiny", processes=2, replicas=2, cpus=1)
    serve.run(application(arguments), name="resps")
    print("result:", json.dumps(outcome(f"http://127.0.0.1:{port}", prompts)))  # noqa: T201  # Ray prints other lines
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
