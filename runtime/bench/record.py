"""The JSON file of a run: every answer as it was measured, enough to make all tables and the report again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..decoding.stats import Stats
from ..errors import BenchError
from ..manifest.typed_json import Malformed, decode
from ..text_files import read_text

T = TypeVar("T")

SCHEMA = 2
BASELINE = "none"
"""The contender that all others are compared with: plain decoding."""


@dataclass(frozen=True)
class Rounds:
    """The deliveries of one answer after its first token, one entry per round. ``waits``: seconds that the caller waited; ``tokens``:
    tokens delivered; ``accepted``: those of them that came from the draft; ``nodes``: rows verified; ``trees``: requested tree, N,D,W."""

    waits: tuple[float, ...]
    tokens: tuple[int, ...]
    accepted: tuple[int, ...]
    nodes: tuple[int, ...]
    trees: tuple[str, ...]


@dataclass(frozen=True)
class TurnRecord:
    """One contender's answer to one turn of a question. ``set``: the question file; ``first_token_seconds``: from the call to the first
    token, tokenization and prefill included."""

    set: str
    question: int
    turn: int
    contender: str
    tokens: tuple[int, ...]
    stop: str
    first_token_seconds: float
    stats: Stats
    rounds: Rounds


@dataclass(frozen=True)
class Skipped:
    """The first turn of a question that could not be asked, usually because the prompt exceeds the context. Later turns are skipped too."""

    set: str
    question: int
    turn: int
    reason: str


@dataclass(frozen=True)
class ContenderRecord:
    """``draft``: what proposes its trees, "none" for the baseline; ``tree``: its tree if the policy is fixed; ``given_up``: why the
    policy's watchdog fell back to the fixed tree, if it did."""

    name: str
    draft: str
    tree: str | None
    given_up: str | None


@dataclass(frozen=True)
class BenchSettings:
    """The command's options. ``prompts``: question files; ``questions``: limit per file."""

    prompts: tuple[str, ...]
    questions: int
    max_new_tokens: int
    temperature: float
    seed: int
    threads: int


@dataclass(frozen=True)
class EngineRecord:
    """``id``: hash of the engine directory's files; ``drafts``: those that took part; ``draft_name`` and ``draft_precision`` describe the
    EAGLE-3 draft, None if none took part."""

    id: str
    model: str
    precision: str
    backend: str
    device: str
    drafts: tuple[str, ...]
    draft_name: str | None
    draft_precision: str | None


@dataclass(frozen=True)
class Machine:
    """``cores``, and ``memory`` in bytes: what this process may use. ``peak_memory``: bytes of this process with all contenders in it."""

    processor: str
    cores: int
    memory: int | None
    peak_memory: int | None
    system: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Measurement:
    """One run. ``answers`` has one entry per contender for every turn; ``interrupted``: the run ended before all questions were asked."""

    schema: int
    date: str
    interrupted: bool
    settings: BenchSettings
    engine: EngineRecord
    machine: Machine
    contenders: tuple[ContenderRecord, ...]
    skipped: tuple[Skipped, ...]
    answers: tuple[TurnRecord, ...]

    @property
    def sets(self) -> list[str]:
        """Names in the order in which they were asked."""
        return list(dict.fromkeys(answer.set for answer in self.answers))


def as_dict(measurement: Measurement, table: Any) -> dict[str, Any]:
    """Plain values, for JSON. ``table``: a dataclass with all figures, for readers of the file; `from_dict` ignores it."""
    return {**dataclasses.asdict(measurement), "table": dataclasses.asdict(table)}


def read(file: Path) -> dict[str, Any]:
    """What `as_dict` made, from a file in JSON; also of another kind of run. Raises BenchError."""
    try:
        data = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"cannot read {file}: {error} — give what resps-bench --json printed") from None
    if not isinstance(data, dict) or not {"schema", "table"} <= data.keys():
        raise BenchError(f"{file} is no measurement — give what resps-bench --json printed")
    return data


def from_dict(data: Mapping[str, Any], file: Path) -> Measurement:
    """The inverse of `as_dict`, without the figures. ``file``: where ``data`` comes from. Raises BenchError."""
    if data["schema"] != SCHEMA:
        raise BenchError(f"{file} is not a measurement of schema {SCHEMA} — give what resps-bench --json of this version printed")
    measurement = decoded(Measurement, data, file)
    _check(measurement, file)
    return measurement


def decoded(kind: type[T], data: Mapping[str, Any], file: Path) -> T:
    """``data`` as a ``kind``, its table left out. ``file``: where it comes from. Raises BenchError."""
    try:
        found: T = decode(kind, {key: value for key, value in data.items() if key != "table"}, "measurement")
    except Malformed as problem:
        raise BenchError(f"{file} is malformed: {problem} — give what resps-bench --json printed, unchanged") from None
    return found


def _check(measurement: Measurement, file: Path) -> None:
    """What the tables rely on: every contender answered every turn, and the columns of an answer have one length."""
    contenders = {contender.name for contender in measurement.contenders}
    turns: dict[tuple[str, int, int], set[str]] = {}
    for answer in measurement.answers:
        turns.setdefault((answer.set, answer.question, answer.turn), set()).add(answer.contender)
        if len({len(column) for column in dataclasses.astuple(answer.rounds)}) != 1:
            raise BenchError(f"{file} is malformed: an answer's rounds have columns of several lengths — measure again")
    if not turns or BASELINE not in contenders or any(answered != contenders for answered in turns.values()):
        raise BenchError(f"{file} is malformed: not every contender answered every turn — measure again")
