"""Runs single turns of the contenders, each in a process of its own, and keeps their results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.peers.contenders import PeerContender
from scripts.peers.environments import PeerUnavailable, last_line, python_of
from scripts.peers.models.files import model_file
from scripts.peers.protocol import PeerAnswer, PeerJob, PeerRequest
from scripts.peers.questions import PeerQuestion
from scripts.peers.quiet import Load, wait_for_quiet

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_SECONDS = 1800
QUIET_SECONDS = 1800
TRIES = 3


@dataclass(frozen=True)
class Turn:
    """One contender's answers to all questions. ``others``: cores that other processes used meanwhile."""

    load_seconds: float
    peak_mib: float
    others: float
    answers: list[PeerAnswer]

    @property
    def summary(self) -> str:
        """A line for whoever waits."""
        rates = [answer.rate for answer in self.answers if answer.rate]
        return f"{sum(rates) / max(1, len(rates)):.1f} tokens/s"


@dataclass(frozen=True)
class LoopTurn:
    """One contender's closed loops over all questions. ``loops``: by number of clients, the answers in the order of the questions.
    ``failed``: the number that it failed with, and why; it has no loops from there on."""

    load_seconds: float
    peak_mib: float
    others: float
    loops: dict[int, list[PeerRequest]]
    failed: str | None = None

    @property
    def summary(self) -> str:
        """A line for whoever waits."""
        rates = []
        for requests in self.loops.values():
            seconds = max(request.arrived + request.first_seconds + sum(request.waits) for request in requests)
            rates.append(f"{sum(len(request.tokens) for request in requests) / seconds:.1f}")
        return f"{', '.join(rates)} tokens/s with {', '.join(map(str, self.loops))} clients"


@dataclass(frozen=True)
class Bench:
    """Settings that all contenders share. ``work``: directory of environments, models and finished turns; ``quiet``: cores that other
    processes may use. A turn waits until they use no more, and is repeated if they did during the turn. ``clients``: numbers of clients,
    None for one request at a time."""

    work: Path
    questions: Sequence[PeerQuestion]
    stop: list[int]
    new_tokens: int
    threads: int
    quiet: float | None = None
    clients: Sequence[int] | None = None

    def prepare(self, contender: PeerContender) -> tuple[dict[str, Any], str | None]:
        """Make the contender's environment and model; returns its options, and a remark if any. Raises PeerUnavailable."""
        if contender.environment is not None:
            python_of(self.work, contender.environment)
        options = {**contender.options, **{option: str(model_file(self.work, form)) for option, form in contender.formats.items()}}
        if not contender.fallback:
            return options, None
        trial = dataclasses.replace(self.job(contender, options), prompts=[self.questions[0].tokens], new_tokens=2)
        if trial.clients is not None:
            trial = dataclasses.replace(trial, clients=[1])
        try:
            self.run(contender, trial, f"{contender.name}-trial")
        except PeerUnavailable as error:
            return {**options, **contender.fallback}, f"{error}. It ran with {contender.fallback} instead."
        return options, None

    def job(self, contender: PeerContender, options: dict[str, Any]) -> PeerJob:
        prompts = [question.tokens for question in self.questions]
        clients = None if self.clients is None else list(self.clients)
        checkout = None if contender.checkout is None else str(contender.checkout)
        return PeerJob(contender.engine, options, prompts, self.stop, self.new_tokens, self.threads, clients=clients, checkout=checkout)

    def turn(self, contender: PeerContender, options: dict[str, Any], number: int) -> Turn:
        """Turn ``number`` of a contender, or its kept result if the same job was finished before. Raises PeerUnavailable."""
        result = self._kept(contender, options, number)
        answers = [PeerAnswer(**answer) for answer in result["answers"]]
        return Turn(result["load_seconds"], result["peak_mib"], result["others"], answers)

    def loops(self, contender: PeerContender, options: dict[str, Any], number: int) -> LoopTurn:
        """The same with several clients."""
        result = self._kept(contender, options, number)
        loops = {loop["clients"]: [PeerRequest(**request) for request in loop["requests"]] for loop in result["loops"]}
        return LoopTurn(result["load_seconds"], result["peak_mib"], result["others"], loops, result["failed"])

    def _kept(self, contender: PeerContender, options: dict[str, Any], number: int) -> dict[str, Any]:
        """The result of a turn's process, from now or from before."""
        job = self.job(contender, options)
        mark = hashlib.sha256(json.dumps(dataclasses.asdict(job), sort_keys=True).encode()).hexdigest()[:16]
        file = self.work / "turns" / f"{contender.name}-{number}-{mark}.json"
        if not file.is_file():
            result = self._quietest(contender, job, f"{contender.name}-{number}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.with_suffix(".partial").write_text(json.dumps(result))
            file.with_suffix(".partial").replace(file)
        kept: dict[str, Any] = json.loads(file.read_text())
        return kept

    def _quietest(self, contender: PeerContender, job: PeerJob, name: str) -> dict[str, Any]:
        """The first undisturbed try, else the least disturbed one. Only one try if the machine did not become quiet."""
        tries: list[dict[str, Any]] = []
        for _ in range(TRIES):
            became_quiet = self.quiet is not None and wait_for_quiet(self.quiet, QUIET_SECONDS)
            load = Load()
            result = self.run(contender, job, name)
            tries.append({**result, "others": load.others()})
            if self.quiet is None or not became_quiet or tries[-1]["others"] <= self.quiet:
                break
        return min(tries, key=lambda attempt: float(attempt["others"]))

    def run(self, contender: PeerContender, job: PeerJob, name: str) -> dict[str, Any]:
        """Run the job in the contender's process and return its result. Raises PeerUnavailable with the process's last line."""
        scratch = self.work / "jobs"
        scratch.mkdir(parents=True, exist_ok=True)
        job_file, result_file = scratch / f"{name}.json", scratch / f"{name}.result.json"
        job_file.write_text(json.dumps(dataclasses.asdict(job)))
        result_file.unlink(missing_ok=True)
        python = sys.executable if contender.environment is None else python_of(self.work, contender.environment)
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1"}
        command = [str(python), "-m", "scripts.peers.worker", str(job_file), str(result_file)]
        try:
            done = subprocess.run(command, cwd=scratch, env=variables, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise PeerUnavailable(f"{contender.name} did not finish in {LIMIT_SECONDS // 60} minutes") from None
        if done.returncode != 0 or not result_file.is_file():
            (scratch / f"{name}.log").write_text(done.stdout + done.stderr)
            how = f"crashed with signal {-done.returncode}" if done.returncode < 0 else f"failed: {last_line(done.stderr)}"
            raise PeerUnavailable(f"{contender.name} {how} — see {Path('jobs', name)}.log in the work directory")
        result: dict[str, Any] = json.loads(result_file.read_text())
        return result
