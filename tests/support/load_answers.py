"""Synthetic runs with several clients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from runtime.bench.load.record import (
    KIND,
    SCHEMA,
    Arrivals,
    LoadAnswer,
    LoadContender,
    LoadMeasurement,
    LoadSettings,
    LoadTurn,
    PlainAnswer,
)
from runtime.bench.machine import this_machine
from runtime.bench.record import EngineRecord

SETTINGS = LoadSettings(("a.jsonl",), 10, None, 20, 0.0, 0, 2)
ONE, FOUR, POISSON = Arrivals(1, None), Arrivals(4, None), Arrivals(None, 2.5)


def an_answer(question: int, due: float, first: float, waits: Sequence[float], counts: Sequence[int], **changes: Any) -> LoadAnswer:
    """An answer that equals plain decoding's (see `a_run`): tokens 0, 1, 2, ... A cycle for each delivery; 10 prompt tokens, 4 cached."""
    tokens = tuple(range(1 + sum(counts)))
    made = LoadAnswer("a", question, due, first, tuple(waits), tuple(counts), tokens, "length", 10, 4, len(counts))
    return dataclasses.replace(made, **changes)


def a_turn(contender: str, arrivals: Arrivals, number: int, *, speed: float = 1.0) -> LoadTurn:
    """Two answers, of 5 and 3 tokens, in 2 / ``speed`` seconds; 5 passes of 15 rows."""
    answers = (
        an_answer(0, 0.0, 0.5 / speed, [0.6 / speed, 0.2 / speed], [3, 1]),
        an_answer(1, 0.5 / speed, 1.0 / speed, [0.2 / speed, 0.3 / speed], [1, 1]),
    )
    return LoadTurn(contender, arrivals, number, 5, 15, answers)


def a_run(turns: Sequence[LoadTurn], **changes: Any) -> LoadMeasurement:
    """Of 8 lanes, say, beside a replica: plain decoding answers with tokens 0, 1, 2, ..."""
    names = list(dict.fromkeys(turn.contender for turn in turns))
    contenders = tuple(LoadContender(name, 1, place + 1, 2, "eagle", None) for place, name in enumerate(names))
    engine = EngineRecord("0123", "toy", "fp32", "onnxruntime", "cpu", ("eagle",), "toy", "int8")
    plain = tuple(PlainAnswer(answer.set, answer.question, tuple(range(len(answer.tokens)))) for answer in turns[0].answers)
    arrivals = tuple(dict.fromkeys(turn.arrivals for turn in turns))
    made = LoadMeasurement(
        KIND, SCHEMA, "2026-01-01", False, SETTINGS, engine, this_machine(), contenders, arrivals, (), 0, plain, tuple(turns)
    )
    return dataclasses.replace(made, **changes)
