"""The Ray Serve application on a real Ray, where it is installed (pip install 'ray[serve]')."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import Decoder

pytest.importorskip("ray.serve", reason="Ray Serve is not installed (pip install 'ray[serve]')")

ROOT = Path(__file__).resolve().parent.parent
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


def test_ray_serves_the_decoder_s_answer(tiny_engine: Path, tmp_path: Path) -> None:
    with Decoder(tiny_engine, threads=1) as decoder:
        text = decoder.generate("the cat sat on the", max_new_tokens=20).text
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = os.pathsep.join((str(ROOT), *(each for each in sys.path if each.endswith("site-packages"))))
    env = {**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    line = [sys.executable, "-c", PROGRAM, str(tiny_engine), str(port)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=env, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    (came,) = [line.removeprefix("came: ") for line in done.stdout.splitlines() if line.startswith("came: ")]  # Ray talks too
    assert json.loads(came) == [text, text, "[DONE]", 400, "n", [True, True]]
