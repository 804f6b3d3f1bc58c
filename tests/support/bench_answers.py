"""Synthetic measurements of resps-bench."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from runtime import Stats
from runtime.backends.cpu.processor import processor_name
from runtime.bench.figures import Table, tabulate
from runtime.bench.machine import this_machine
from runtime.bench.record import BASELINE, SCHEMA, BenchSettings, ContenderRecord, EngineRecord, Measurement, Rounds, TurnRecord
from runtime.manifest.tuning import Tuning
from tests.support.tunings import CALIBRATION, LATENCY

SETTINGS = BenchSettings(("a.jsonl",), 10, 20, 0.0, 0, 1)


def an_answer(
    contender: str,
    counts: Sequence[int],
    seconds: float,
    *,
    name: str = "a",
    question: int = 0,
    turn: int = 0,
    tokens: Sequence[int] | None = None,
) -> TurnRecord:
    """An answer whose rounds brought ``counts`` tokens in equal times; by default all answers to a question are the same."""
    total = 1 + sum(counts)
    cycles = len(counts)
    stats = Stats(10, total, cycles, 2 * cycles, total - 1 - cycles, 0.0, 0.0, 0.5, seconds, 0.2 * seconds, 0.7 * seconds)
    rounds = Rounds((seconds / max(1, cycles),) * cycles, tuple(counts), tuple(count - 1 for count in counts), (3,) * cycles,
                    ("3,2,1",) * cycles)  # fmt: skip
    return TurnRecord(name, question, turn, contender, tuple(range(total) if tokens is None else tokens), "length", 0.6, stats, rounds)


def a_measurement(answers: Sequence[TurnRecord], **changes: Any) -> Measurement:
    contenders = tuple(
        ContenderRecord(name, "none" if name == BASELINE else "eagle", None, None)
        for name in dict.fromkeys(answer.contender for answer in answers)
    )
    engine = EngineRecord("0123", "toy", "fp32", "onnxruntime", "cpu", ("eagle",), "toy", "int8")
    measurement = Measurement(SCHEMA, "2026-01-01", False, SETTINGS, engine, this_machine(), contenders, (), tuple(answers))
    return dataclasses.replace(measurement, **changes)


def drawn(
    seed: int, sets: Sequence[str] = ("a", "b"), contenders: Sequence[str] = (BASELINE, "x", "y"), questions: int = 6
) -> list[TurnRecord]:
    """Random answers, of two turns each: all contenders write the same tokens."""
    choice = random.Random(seed)
    answers = []
    for name in sets:
        for question in range(questions):
            for turn in range(2):
                total = choice.randint(2, 30)
                for contender in contenders:
                    counts = [1] * total if contender == BASELINE else []
                    while sum(counts) < total:
                        counts.append(min(choice.randint(1, 4), total - sum(counts)))
                    seconds = len(counts) * choice.uniform(0.01, 0.03)
                    answers.append(an_answer(contender, counts, seconds, name=name, question=question, turn=turn))
    return answers


def both(answers: Sequence[TurnRecord]) -> tuple[Measurement, Table]:
    measurement = a_measurement(answers)
    return measurement, tabulate(measurement)


def a_tuning(**changes: Any) -> Tuning:
    found = {"static": (6, 2, 3), "cost_model": CALIBRATION, "latency": LATENCY, "ratios": {"none": 1.0}, "policy": "cost-model"}
    none: dict[str, Any] = {"learned": {}, "graphs": {}, "files": {}}
    here = {"engine": "", "machine": processor_name(), "threads": 2, "portable": False}
    return Tuning(**{**found, **none, **here, **changes})
