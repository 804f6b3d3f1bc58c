"""The Ray Serve application on a real Ray, where it is installed (pip install 'ray[serve]')."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import Decoder, SamplingParams

pytest.importorskip("ray.serve", reason="Ray Serve is not installed (pip install 'ray[serve]')")

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import json, sys
import httpx
import ray
from ray import serve
from runtime.serve.ray_app import Arguments, application

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(application(Arguments(engine_dir=sys.argv[1], model_name="tiny", replicas=2)), name="resps")
url = f"http://127.0.0.1:{sys.argv[2]}"
asked = {"prompt": "the cat sat on the", "max_tokens": 20, "temperature": 0}
with httpx.Client(base_url=url, timeout=60) as http:
    whole = http.post("/v1/completions", json=asked).json()["choices"][0]["text"]
    lines = [line.removeprefix("data: ") for line in http.post("/v1/completions", json={**asked, "stream": True}).text.splitlines() if line]
    streamed = "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])
    refused = http.post("/v1/completions", json={**asked, "n": 2})
    health = http.get("/healthz").json()
print("came:", json.dumps([whole, streamed, lines[-1], refused.status_code, refused.json()["error"]["param"], health["replicas"]]))
serve.shutdown()
ray.shutdown()
"""


def came_of(program: str, engine: Path, folder: Path, *arguments: str) -> object:
    """What the program prints after "came:", run in a process of its own that Ray may fill."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = os.pathsep.join((str(ROOT), *(each for each in sys.path if each.endswith("site-packages"))))
    env = {**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    line = [sys.executable, "-c", program, str(engine), str(port), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=env, cwd=folder, timeout=600)
    assert done.returncode == 0, done.stderr
    (came,) = [line.removeprefix("came: ") for line in done.stdout.splitlines() if line.startswith("came: ")]  # Ray talks too
    return json.loads(came)


def test_ray_serves_the_decoder_s_answer(tiny_engine: Path, tmp_path: Path) -> None:
    with Decoder(tiny_engine, threads=1) as decoder:
        text = decoder.generate("the cat sat on the", SamplingParams(max_new_tokens=20)).text
    assert came_of(PROGRAM, tiny_engine, tmp_path) == [text, text, "[DONE]", 400, "n", [True, True]]


SEVERAL = """
import json, os, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
import httpx
import ray
from ray import serve
from runtime.serve.ray_app import Arguments, application

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(application(Arguments(engine_dir=sys.argv[1], model_name="tiny", processes=2)), name="resps")
url = f"http://127.0.0.1:{sys.argv[2]}"

def ask(prompt):
    with httpx.Client(base_url=url, timeout=60) as http:
        return http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 20, "temperature": 0}).json()["choices"][0]["text"]

def processes(wanted, gone=()):
    end, found = time.monotonic() + 240, set()
    while len(found) < wanted:
        assert time.monotonic() < end, (found, gone)
        try:
            found.add(httpx.get(f"{url}/healthz", timeout=10).json()["process"])
        except (httpx.TransportError, ValueError):  # the moment between a process' end and Ray's noticing
            pass
        found -= set(gone)
        time.sleep(0.02)
    return found

before = processes(2)
with ThreadPoolExecutor(8) as clients:
    texts = list(clients.map(ask, json.loads(sys.argv[3]) * 3))
killed = min(before)
os.kill(killed, signal.SIGKILL)
after = processes(2, gone=[killed])
with ThreadPoolExecutor(8) as clients:
    again = list(clients.map(ask, json.loads(sys.argv[3]) * 3))
print("came:", json.dumps([texts, again, os.getpid() in before, len(before | after)]))
serve.shutdown()
ray.shutdown()
"""


def test_ray_runs_processes_and_replaces_one_that_died(tiny_engine: Path, tmp_path: Path) -> None:
    prompts = ["the cat sat", "a dog sat on", "the log and the", "a mat"]
    with Decoder(tiny_engine, threads=1) as decoder:
        texts = [decoder.generate(prompt, SamplingParams(max_new_tokens=20)).text for prompt in prompts] * 3
    came = came_of(SEVERAL, tiny_engine, tmp_path, json.dumps(prompts))
    assert came == [texts, texts, False, 3]
