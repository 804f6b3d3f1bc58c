"""The JSON file of a run with several clients: every answer as it was measured, enough to make all tables and the report again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BenchError
from ..record import EngineRecord, Machine, Skipped, decoded

KIND = "load"
"""``kind`` in the file, which distinguishes it from a run of one request at a time."""
SCHEMA = 1


@dataclass(frozen=True)
class Arrivals:
    """How requests arrive. ``clients``: so many clients, each of which sends its next request as soon as its last answer has ended (closed
    loop). ``rate``: requests per second, Poisson, whether answers have ended or not (open loop). One of them is None."""

    clients: int | None
    rate: float | None

    @property
    def name(self) -> str:
        """How tables call it."""
        if self.clients is None:
            return f"{self.rate:g} requests/s"
        return "1 client" if self.clients == 1 else f"{self.clients} clients"


@dataclass(frozen=True)
class LoadContender:
    """What serves the requests: ``replicas`` Decoders of ``lanes`` lanes, each with ``threads`` threads. ``policy``: a name or a fixed
    tree; None is the Decoder's own."""

    name: str
    replicas: int
    lanes: int
    threads: int
    draft: str
    policy: str | None


@dataclass(frozen=True)
class LoadAnswer:
    """The answer to one request. Times in seconds. ``due``: when the request arrived, since the turn began. ``first_token``: from then to
    the first token, the wait for a free place included. ``waits`` and ``counts``: of each delivery after the first token, the wait for it
    and its tokens. ``cached``: prompt tokens that the cache still held. ``cycles``: rounds of the loop."""

    set: str
    question: int
    due: float
    first_token: float
    waits: tuple[float, ...]
    counts: tuple[int, ...]
    tokens: tuple[int, ...]
    stop: str
    prompt_tokens: int
    cached: int
    cycles: int

    @property
    def end(self) -> float:
        """When its last token came, in seconds since the turn began."""
        return self.due + self.first_token + sum(self.waits)


@dataclass(frozen=True)
class LoadTurn:
    """One contender's answers to all questions, each asked once. ``passes``: verification passes, ``rows``: rows in them."""

    contender: str
    arrivals: Arrivals
    number: int
    passes: int
    rows: int
    answers: tuple[LoadAnswer, ...]


@dataclass(frozen=True)
class PlainAnswer:
    """What plain decoding answers when nothing else runs."""

    set: str
    question: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class LoadSettings:
    """The command's options. ``prompts``: question files; ``questions``: limit per file."""

    prompts: tuple[str, ...]
    questions: int
    max_prompt_tokens: int | None
    max_new_tokens: int
    temperature: float
    seed: int
    turns: int


@dataclass(frozen=True)
class LoadMeasurement:
    """One run. ``turns``: every contender takes a turn under all arrivals, then all of them the next one. ``dropped``: prompts longer than
    ``max_prompt_tokens``, and repeated ones. ``plain``: an answer per question, in the order in which they are asked."""

    kind: str
    schema: int
    date: str
    interrupted: bool
    settings: LoadSettings
    engine: EngineRecord
    machine: Machine
    contenders: tuple[LoadContender, ...]
    arrivals: tuple[Arrivals, ...]
    skipped: tuple[Skipped, ...]
    dropped: int
    plain: tuple[PlainAnswer, ...]
    turns: tuple[LoadTurn, ...]


def as_dict(measurement: LoadMeasurement, table: Any) -> dict[str, Any]:
    """Plain values, for JSON. ``table``: a dataclass with all figures, for readers of the file; `from_dict` ignores it."""
    return {**dataclasses.asdict(measurement), "table": dataclasses.asdict(table)}


def from_dict(data: dict[str, Any], file: Path) -> LoadMeasurement:
    """The inverse of `as_dict`. ``file``: where ``data`` comes from. Raises BenchError."""
    if data["schema"] != SCHEMA:
        raise BenchError(
            f"{file} is a run with clients of another schema than {SCHEMA} — give what resps-bench --json of this version printed"
        )
    measurement = decoded(LoadMeasurement, data, file)
    _check(measurement, file)
    return measurement


def _check(measurement: LoadMeasurement, file: Path) -> None:
    """What the tables rely on: turns are of known contenders and arrivals and answer every question once, in one order."""
    asked = [(answer.set, answer.question) for answer in measurement.plain]
    names = {contender.name for contender in measurement.contenders}
    for turn in measurement.turns:
        if turn.contender not in names or turn.arrivals not in measurement.arrivals:
            raise BenchError(f"{file} is malformed: a turn of something that the file does not describe — measure again")
        if [(answer.set, answer.question) for answer in turn.answers] != asked:
            raise BenchError(f"{file} is malformed: a turn does not answer every question once — measure again")
        if any(len(answer.waits) != len(answer.counts) or not answer.tokens for answer in turn.answers):
            raise BenchError(f"{file} is malformed: an answer has no token, or not a wait for every delivery — measure again")
    if not measurement.turns:
        raise BenchError(f"{file} is malformed: it has no turn — measure again")
