"""The Ray Serve application: on a real, local Ray cluster, and its parts without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import Decoder, EngineDirError, SamplingParams
from runtime.manifest.load import read_manifest
from runtime.serve.ray.arguments import Arguments
from runtime.serve.ray.pins import UNTUNED, Pins, expect_pinned, pinned
from runtime.serve.ray.prefixes import BLOCK, MOST, Prefixes

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = ["the cat sat", "a dog sat on", "the log and the", "a mat"] * 3


@pytest.mark.ray
def test_ray_serves_the_decoder_s_answers_and_loses_none_when_a_replica_is_killed(tiny_engine: Path, tmp_path: Path) -> None:
    with Decoder(tiny_engine, threads=1) as decoder:
        texts = [decoder.generate(prompt, SamplingParams(max_new_tokens=20)).text for prompt in PROMPTS]
    line = [sys.executable, "-m", "tests.support.serve.ray_cluster", str(tiny_engine), *PROMPTS]
    patience = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}  # of a busy machine
    env = {**os.environ, **patience, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=env, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    (result,) = [line.removeprefix("result:") for line in done.stdout.splitlines() if line.startswith("result:")]
    assert json.loads(result) == {
        "texts": texts,
        "stream": [texts[0], "[DONE]"],
        "refused": [400, "best_of"],
        "reload": "tuning_unusable",
        "readers": 1,
        "own_process": False,
        "load": {"wrong": [], "answered": True, "lost": 0, "new": 1},
    }


def test_a_replica_with_another_engine_or_tuning_does_not_start(tiny_engine: Path) -> None:
    here = pinned(tiny_engine, None, None)
    assert here == Pins(read_manifest(tiny_engine).engine_id, UNTUNED)
    expect_pinned(tiny_engine, here)
    for wrong, message in ((Pins("other", UNTUNED), f"has the engine {here.engine}"), (Pins(here.engine, "other"), "has the tuning none")):
        with pytest.raises(EngineDirError, match=message):
            expect_pinned(tiny_engine, wrong)
    assert pinned(Path("nowhere"), "a", "b") == Pins("a", "b")  # an application can be built on a machine without the engine


def test_replicas_are_counted_by_lanes_in_use(tiny_engine: Path) -> None:
    fixed = Arguments(engine_dir=str(tiny_engine), replicas=3, threads=1)
    assert (fixed.most_lanes, fixed.scaling) == (4, {"num_replicas": 3})
    scaled = Arguments(engine_dir=str(tiny_engine), replicas=2, max_replicas=5, lanes=8).scaling["autoscaling_config"]
    assert (scaled["min_replicas"], scaled["max_replicas"], scaled["target_ongoing_requests"]) == (2, 5, 6)
    asked = Arguments(engine_dir=str(tiny_engine), max_replicas=5, busy_lanes=3.5)
    assert asked.scaling["autoscaling_config"]["target_ongoing_requests"] == 3.5


def test_the_replica_with_most_of_a_prompt_holds_it() -> None:
    prefixes, text = Prefixes(), "".join(chr(97 + at % 26) * (at % 5 + 1) for at in range(4 * BLOCK))[: 4 * BLOCK]
    assert prefixes.holder(text) is None
    prefixes.add("one", text[: 2 * BLOCK])
    prefixes.add("two", text[:BLOCK])
    assert prefixes.holder(text) == "one"
    assert prefixes.holder(text + "x" * BLOCK) is None  # less than half of it
    prefixes.keep(["two"])
    assert prefixes.holder(text) is None
    assert prefixes.holder(text[:BLOCK]) == "two"
    assert prefixes.holder("short") is None
    for at in range(MOST):
        prefixes.add("two", f"{at:{BLOCK}}")
    assert prefixes.holder(text[:BLOCK]) is None  # the oldest are forgotten
