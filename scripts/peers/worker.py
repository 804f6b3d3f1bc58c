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

from scripts.peers.closed_loop import closed_loop
from scripts.peers.protocol import BatchEngine, PeerEngine, PeerJob, peak_mib

WARM_UP = 16
"""Tokens of the untimed first answer."""


def open_engine(job: PeerJob) -> Any:
    """A PeerEngine, or a BatchEngine if the job has ``clients``."""
    if job.checkout is not None:
        sys.path.insert(0, job.checkout)  # scripts.peers is imported already and stays this one
    return importlib.import_module(f"scripts.peers.engines.{job.engine}").open_engine(job)


def answer_clients(engine: BatchEngine, job: PeerJob, clients: list[int]) -> dict[str, Any]:
    """A closed loop over all prompts for each number of clients, the fewest first, each after a short untimed one. A number that the engine
    fails with ends them, and is reported in ``failed`` beside the loops before it."""
    loops: list[dict[str, Any]] = []
    for number in sorted(clients):
        try:
            closed_loop(engine, job.prompts[:number], number, WARM_UP, job.stop)
            engine.forget()
            requests = closed_loop(engine, job.prompts, number, job.new_tokens, job.stop)
        except Exception as error:
            if not loops:
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            return {"loops": loops, "failed": f"with {number} clients: {reason}"}
        loops.append({"clients": number, "requests": [dataclasses.asdict(request) for request in requests]})
    return {"loops": loops, "failed": None}


def write_logits(engine: PeerEngine, job: PeerJob) -> None:
    import numpy

    for number, (prompt, answer) in enumerate(zip(job.prompts, job.answers or [], strict=True)):
        rows = engine.logits([*prompt, *answer[:-1]], len(prompt) - 1)
        numpy.save(Path(job.logits_dir or ".") / f"{number}.npy", numpy.asarray(rows, numpy.float32))


def work(job: PeerJob) -> dict[str, Any]:
    """Load the engine, then measure one request at a time or several, or write logits."""
    started = perf_counter()
    engine = open_engine(job)
    load_seconds = perf_counter() - started
    if job.answers is not None:
        write_logits(engine, job)
        return {}
    if job.clients is not None:
        found = answer_clients(engine, job, job.clients)
        return {"load_seconds": load_seconds, "peak_mib": peak_mib(), **found}
    engine.answer(job.prompts[0], WARM_UP)
    answers = [dataclasses.asdict(engine.answer(prompt, job.new_tokens)) for prompt in job.prompts]
    return {"load_seconds": load_seconds, "peak_mib": peak_mib(), "answers": answers}


if __name__ == "__main__":
    result = work(PeerJob(**json.loads(Path(sys.argv[1]).read_text())))
    Path(sys.argv[2]).write_text(json.dumps(result))
