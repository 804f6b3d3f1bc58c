"""What was measured, answer by answer, as it lies in the JSON file: enough to make every table and report anew."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..decoding.stats import Stats
from ..errors import BenchError
from ..manifest.typed_json import Malformed, decode

SCHEMA = 1
BASELINE = "none"
"""The arm that all others are compared with: plain decoding."""


@dataclass(frozen=True)
class Rounds:
    """The deliveries of one answer after its first token, one entry a round. ``waits``: seconds that the caller waited for it; ``tokens``:
    how many it brought; ``accepted``: of these from the draft; ``nodes``: rows verified; ``trees``: what was asked for, N,D,W."""

    waits: tuple[float, ...]
    tokens: tuple[int, ...]
    accepted: tuple[int, ...]
    nodes: tuple[int, ...]
    trees: tuple[str, ...]


@dataclass(frozen=True)
class TurnRecord:
    """One arm's answer to one turn of a question. ``set``: the question's file; ``first_token_seconds``: from the call to the first token,
    tokenizing and the prompt's passes included."""

    set: str
    question: int
    turn: int
    arm: str
    tokens: tuple[int, ...]
    stop: str
    first_token_seconds: float
    stats: Stats
    rounds: Rounds


@dataclass(frozen=True)
class Skipped:
    """A turn that nobody could answer, and the turns after it: usually a prompt longer than the context."""

    set: str
    question: int
    turn: int
    reason: str


@dataclass(frozen=True)
class ContenderRecord:
    """``tree``: the one it always asks for, if it is fixed; ``given_up``: why a policy's guard went back to the fixed tree."""

    name: str
    tree: str | None
    given_up: str | None


@dataclass(frozen=True)
class BenchSettings:
    """How it was asked. ``prompts``: files; ``questions``: most of each file."""

    prompts: tuple[str, ...]
    questions: int
    max_new_tokens: int
    temperature: float
    seed: int
    threads: int


@dataclass(frozen=True)
class EngineRecord:
    """``id``: hash of the engine directory's files."""

    id: str
    model: str
    precision: str
    backend: str
    device: str
    draft: str
    draft_name: str | None
    draft_precision: str | None


@dataclass(frozen=True)
class Machine:
    """``memory`` and ``peak_memory`` in bytes: what the machine has, and the most that this process held, all arms in it."""

    processor: str
    cores: int
    memory: int | None
    peak_memory: int | None
    system: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Measurement:
    """One run. ``answers`` hold, for every turn, one of each arm; ``interrupted``: there would have been more."""

    schema: int
    date: str
    interrupted: bool
    settings: BenchSettings
    engine: EngineRecord
    machine: Machine
    arms: tuple[ContenderRecord, ...]
    skipped: tuple[Skipped, ...]
    answers: tuple[TurnRecord, ...]

    @property
    def sets(self) -> list[str]:
        """Names in the order they were asked."""
        return list(dict.fromkeys(answer.set for answer in self.answers))


def to_json(measurement: Measurement, table: Any) -> str:
    """``table``: a dataclass, the figures for those who do not want to compute them; it is not read back."""
    return json.dumps({**dataclasses.asdict(measurement), "table": dataclasses.asdict(table)}, ensure_ascii=False)


def read(file: Path) -> Measurement:
    """The inverse of ``to_json``, figures left out. Raises BenchError."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"cannot read {file}: {error} — give what resps-bench --json printed") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA or "table" not in data:
        raise BenchError(f"{file} is no measurement of schema {SCHEMA} — give what resps-bench --json of this version printed")
    del data["table"]
    try:
        measurement: Measurement = decode(Measurement, data, "measurement")
    except Malformed as problem:
        raise BenchError(f"{file} is malformed: {problem} — give what resps-bench --json printed, unchanged") from None
    _check(measurement, file)
    return measurement


def _check(measurement: Measurement, file: Path) -> None:
    """What the tables rely on: every arm answered every turn, and the columns of an answer fit together."""
    arms = {arm.name for arm in measurement.arms}
    turns: dict[tuple[str, int, int], set[str]] = {}
    for answer in measurement.answers:
        turns.setdefault((answer.set, answer.question, answer.turn), set()).add(answer.arm)
        if len({len(column) for column in dataclasses.astuple(answer.rounds)}) != 1:
            raise BenchError(f"{file} is malformed: an answer's rounds have columns of several lengths — measure again")
    if not turns or BASELINE not in arms or any(answered != arms for answered in turns.values()):
        raise BenchError(f"{file} is malformed: not every arm answered every turn — measure again")
