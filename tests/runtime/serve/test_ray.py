"""The Ray Serve application on a real, local Ray cluster."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import Decoder, SamplingParams

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = ["the cat sat", "a dog sat on", "the log and the", "a mat"] * 3


@pytest.mark.ray
def test_ray_serves_the_decoder_s_answers_and_replaces_a_killed_process(tiny_engine: Path, tmp_path: Path) -> None:
    with Decoder(tiny_engine, threads=1) as decoder:
        texts = [decoder.generate(prompt, SamplingParams(max_new_tokens=20)).text for prompt in PROMPTS]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    line = [sys.executable, "-m", "tests.support.serve.ray_cluster", str(tiny_engine), str(port), *PROMPTS]
    patience = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}  # of a busy machine
    env = {**os.environ, **patience, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=env, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    (result,) = [line.removeprefix("result:") for line in done.stdout.splitlines() if line.startswith("result:")]
    assert json.loads(result) == {
        "texts": texts,
        "stream": [texts[0], "[DONE]"],
        "refused": [400, "best_of"],
        "replicas": [True, True],
        "texts_after_kill": texts,
        "processes": 3,
        "own_process": False,
    }
