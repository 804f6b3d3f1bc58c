"""A Triton model repository over an engine."""

from __future__ import annotations

from pathlib import Path

from runtime.serve.triton.repository import write_repository

PROMPT = "the cat sat on the mat"


def write(out: Path, engine_dir: Path, request_seconds: float = 120) -> Path:
    limits = {"queue_seconds": 2, "request_seconds": request_seconds, "tool_calls": None, "reasoning": None}
    return write_repository(out, engine_dir, name="resps", replicas=2, lanes=1, threads=0, policy="", queue=8, **limits)
