"""scripts/lab/profile_pass.py: operators and times of a real pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.console import run_command
from runtime.manifest.load import load_manifest
from scripts.lab.profile_pass import Operator, main, medians, profile_pass

LAYERS = 6


def test_operators_of_a_pass(echo_engine: Path) -> None:
    profile = profile_pass(echo_engine, load_manifest(echo_engine), rows=3, context=90, passes=4, threads=1, shapes=False)
    counts = {operator.name: operator.nodes for operator in profile.operators}
    assert counts["GroupQueryAttention"] == LAYERS  # the graph that the CPU runs
    assert counts["Gemm"] == 4 * LAYERS + 1
    times = [operator.milliseconds for operator in profile.operators]
    assert times == sorted(times, reverse=True)
    assert 0 < sum(times) <= profile.milliseconds


def test_shapes_distinguish_products(echo_engine: Path) -> None:
    profile = profile_pass(echo_engine, load_manifest(echo_engine), rows=3, context=90, passes=2, threads=1, shapes=True)
    counts = {operator.name: operator.nodes for operator in profile.operators}
    assert counts["Gemm 3x64 to 3x128"] == LAYERS  # queries, keys and values
    assert counts["Gemm 3x64 to 3x320"] == 1  # the head


@pytest.mark.parametrize("as_json", [False, True])
def test_command(echo_engine: Path, capfd: pytest.CaptureFixture[str], as_json: bool) -> None:
    arguments = ["--engine-dir", str(echo_engine), "--rows", "2", "--context", "40", "--passes", "2", *(["--json"] if as_json else [])]
    assert run_command(main, "profile_pass", arguments) == 0
    out, err = capfd.readouterr()
    assert err == ""
    if as_json:
        printed = json.loads(out)
        assert (printed["engine"], printed["precision"], printed["rows"], printed["context"]) == ("engine", "fp32", 2, 40)
        assert {"name", "milliseconds", "nodes"} == set(printed["operators"][0])
    else:
        assert out.startswith("engine (fp32), 2 of 40 tokens: ")
        assert "| GroupQueryAttention | " in out


@pytest.mark.parametrize("arguments", [["--context", "251"], ["--rows", "65"], ["--rows", "8", "--context", "8"]])
def test_impossible_sizes_are_usage_errors(echo_engine: Path, capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run_command(main, "profile_pass", ["--engine-dir", str(echo_engine), *arguments]) == 2
    assert "do not fit: the engine has 250 tokens of context and passes of up to 64 rows" in capfd.readouterr().err


def node(name: str, start: int, duration: int) -> dict[str, Any]:
    return {"cat": "Node", "name": f"{name}_1_kernel_time", "ts": start, "dur": duration, "args": {"op_name": name}}


def test_medians_of_the_last_passes_only() -> None:
    starts, events = (0, 1000, 2000, 3000), []
    for start, add, gemm in zip(starts, (900, 10, 30, 20), (90, 100, 500, 200), strict=True):
        events += [node("Add", start + 1, add // 2), node("Add", start + 2, add // 2), node("Gemm", start + 3, gemm)]
        events.append({"cat": "Session", "name": "model_run", "ts": start, "dur": add + gemm + 5})
    events.append({"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 10**6})
    profile = medians(events, 3, shapes=False)
    assert profile.operators == (Operator("Gemm", 0.2, 1), Operator("Add", 0.02, 2))
    assert profile.milliseconds == 0.225
