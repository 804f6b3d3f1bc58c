"""The process of one engine: loads it, warms it up, answers every prompt and writes the measurements.

    PYTHONPATH=PROJECT python -m scripts.peers.worker JOB.json RESULT.json

It runs in the engine's environment and imports only that engine and the standard library.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from scripts.peers.protocol import PeerEngine, PeerJob, peak_mib

WARM_UP = 16
"""Tokens of the untimed first answer."""


def open_engine(job: PeerJob) -> PeerEngine:
    module = importlib.import_module(f"scripts.peers.engines.{job.engine}")
    engine: PeerEngine = module.open_engine(job)
    return engine


def write_logits(engine: PeerEngine, job: PeerJob) -> None:
    import numpy

    for number, (prompt, answer) in enumerate(zip(job.prompts, job.answers or [], strict=True)):
        rows = engine.logits([*prompt, *answer[:-1]], len(prompt) - 1)
        numpy.save(Path(job.logits_dir or ".") / f"{number}.npy", numpy.asarray(rows, numpy.float32))


def work(job: PeerJob) -> dict[str, Any]:
    """Load the engine, then measure or write logits."""
    started = perf_counter()
    engine = open_engine(job)
    load_seconds = perf_counter() - started
    if job.answers is not None:
        write_logits(engine, job)
        return {}
    engine.answer(job.prompts[0], WARM_UP)
    answers = [dataclasses.asdict(engine.answer(prompt, job.new_tokens)) for prompt in job.prompts]
    return {"load_seconds": load_seconds, "peak_mib": peak_mib(), "answers": answers}


if __name__ == "__main__":
    result = work(PeerJob(**json.loads(Path(sys.argv[1]).read_text())))
    Path(sys.argv[2]).write_text(json.dumps(result))
