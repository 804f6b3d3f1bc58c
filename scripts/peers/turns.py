"""Runs the arms in turn, each in a process of its own, and keeps what every turn measured."""

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
from scripts.peers.environments import last_line, python_of
from scripts.peers.errors import PeerUnavailable
from scripts.peers.models.files import model_file
from scripts.peers.protocol import PeerAnswer, PeerJob
from scripts.peers.questions import PeerQuestion
from scripts.peers.quiet import Load, wait_for_quiet

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_SECONDS = 1800
QUIET_SECONDS = 1800
TRIES = 3


@dataclass(frozen=True)
class Turn:
    """One arm's answers to all questions. ``others``: cores that other processes took meanwhile, as far as the system tells."""

    load_seconds: float
    peak_mib: float
    others: float
    answers: list[PeerAnswer]


@dataclass(frozen=True)
class Bench:
    """What all arms have in common. ``work``: where environments, models and finished turns lie. ``quiet``: cores that other processes may
    take; a turn waits for it, and is repeated where it was disturbed all the same."""

    work: Path
    questions: Sequence[PeerQuestion]
    stop: list[int]
    new_tokens: int
    threads: int
    quiet: float | None = None

    def prepare(self, arm: PeerContender) -> tuple[dict[str, Any], str | None]:
        """The arm's options, with its environment and its model ready, and what has to be said of them. Raises PeerUnavailable."""
        if arm.environment is not None:
            python_of(self.work, arm.environment)
        options = {**arm.options, **{option: str(model_file(self.work, form)) for option, form in arm.forms.items()}}
        if not arm.fallback:
            return options, None
        trial = dataclasses.replace(self.job(arm, options), prompts=[self.questions[0].tokens], new_tokens=2)
        try:
            self.run(arm, trial, f"{arm.name}-trial")
        except PeerUnavailable as error:
            return {**options, **arm.fallback}, f"{error}. It ran with {arm.fallback} instead."
        return options, None

    def job(self, arm: PeerContender, options: dict[str, Any]) -> PeerJob:
        return PeerJob(arm.engine, options, [question.tokens for question in self.questions], self.stop, self.new_tokens, self.threads)

    def turn(self, arm: PeerContender, options: dict[str, Any], number: int) -> Turn:
        """Turn ``number`` of an arm; one that was finished earlier with the same questions is read again. Raises PeerUnavailable."""
        job = self.job(arm, options)
        mark = hashlib.sha256(json.dumps(dataclasses.asdict(job), sort_keys=True).encode()).hexdigest()[:16]
        file = self.work / "turns" / f"{arm.name}-{number}-{mark}.json"
        if not file.is_file():
            result = self._quietest(arm, job, f"{arm.name}-{number}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.with_suffix(".partial").write_text(json.dumps(result))
            file.with_suffix(".partial").replace(file)
        found = json.loads(file.read_text())
        return Turn(**{**found, "answers": [PeerAnswer(**answer) for answer in found["answers"]]})

    def _quietest(self, arm: PeerContender, job: PeerJob, name: str) -> dict[str, Any]:
        """The first undisturbed try, else the least disturbed one; one try only where the machine never became quiet."""
        tries: list[dict[str, Any]] = []
        for _ in range(TRIES):
            became_quiet = self.quiet is not None and wait_for_quiet(self.quiet, QUIET_SECONDS)
            load = Load()
            result = self.run(arm, job, name)
            tries.append({**result, "others": load.others()})
            if self.quiet is None or not became_quiet or tries[-1]["others"] <= self.quiet:
                break
        return min(tries, key=lambda each: float(each["others"]))

    def run(self, arm: PeerContender, job: PeerJob, name: str) -> dict[str, Any]:
        """What the arm's process says about ``job``. Raises PeerUnavailable with its last line when it fails."""
        scratch = self.work / "jobs"
        scratch.mkdir(parents=True, exist_ok=True)
        asked, told = scratch / f"{name}.json", scratch / f"{name}.result.json"
        asked.write_text(json.dumps(dataclasses.asdict(job)))
        told.unlink(missing_ok=True)
        python = sys.executable if arm.environment is None else python_of(self.work, arm.environment)
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1"}
        command = [str(python), "-m", "scripts.peers.worker", str(asked), str(told)]
        try:
            done = subprocess.run(command, cwd=scratch, env=variables, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise PeerUnavailable(f"{arm.name} did not finish in {LIMIT_SECONDS // 60} minutes") from None
        if done.returncode != 0 or not told.is_file():
            (scratch / f"{name}.log").write_text(done.stdout + done.stderr)
            how = f"crashed with signal {-done.returncode}" if done.returncode < 0 else f"failed: {last_line(done.stderr)}"
            raise PeerUnavailable(f"{arm.name} {how} — see {Path('jobs', name)}.log in the work directory")
        result: dict[str, Any] = json.loads(told.read_text())
        return result
