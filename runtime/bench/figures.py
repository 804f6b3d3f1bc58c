"""Computes all figures of a run: one cell per set and contender, and averages over the sets. Definitions: docs/lab/figures.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import numpy as np

from .ratio import Ratio, Resampled, Spread, compare, decoded, mean_of
from .record import BASELINE, Measurement, TurnRecord

Plain = Mapping[tuple[str, int, int], tuple[int, ...]]
"""(set, question, turn) -> the baseline's tokens."""


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Cell:
    """One contender on one set, or on all sets (``set`` is None). Figures are None if nothing was decoded. ``tokens``: without the first
    token of each answer, which prefill produces; ``acceptance``: of the rounds that accepted i draft tokens, the share that accepted one
    more, i = 0, 1, ...; ``draft``, ``verify``, ``host``: shares of ``cycle_ms``; ``trees`` and ``rows``: rounds by requested tree and by
    verified rows; ``differing_tokens``: positions at which answers differ from the baseline's."""

    set: str | None
    contender: str
    questions: int
    answers: int
    tokens: int
    cycles: int
    tokens_per_second: float | None
    ratio: Ratio | None
    tokens_per_cycle: float | None
    acceptance: tuple[float, ...]
    first_token: Percentiles
    delivery: Percentiles | None
    token: Percentiles | None
    prefill_tokens_per_second: float
    cycle_ms: float | None
    draft: float | None
    verify: float | None
    host: float | None
    trees: Mapping[str, int]
    rows: Mapping[int, int]
    differing_answers: int
    differing_tokens: int


@dataclass(frozen=True)
class Mean:
    """One contender over all sets: arithmetic means of its cells' figures, every set with the same weight. None if a set has no figure."""

    contender: str
    tokens_per_second: float | None
    tokens_per_cycle: float | None
    median: Spread | None
    sums: Spread | None


@dataclass(frozen=True)
class Table:
    """``cells`` by set, then by contender; ``pooled``: all answers of a contender as if they were one set, without a ratio."""

    cells: tuple[Cell, ...]
    means: tuple[Mean, ...]
    pooled: tuple[Cell, ...]


def tabulate(measurement: Measurement) -> Table:
    """Every figure of every table."""
    names, sets = [contender.name for contender in measurement.contenders], measurement.sets
    by_cell: dict[tuple[str, str], list[TurnRecord]] = {(each, name): [] for each in sets for name in names}
    for answer in measurement.answers:
        by_cell[answer.set, answer.contender].append(answer)
    plain = {(answer.set, answer.question, answer.turn): answer.tokens for answer in measurement.answers if answer.contender == BASELINE}
    compared = {key: compare(answers, by_cell[key[0], BASELINE]) for key, answers in by_cell.items()}
    cells = {key: _cell(*key, answers, plain, compared[key]) for key, answers in by_cell.items()}
    pooled = (_cell(None, name, [answer for each in sets for answer in by_cell[each, name]], plain, None) for name in names)
    means = (_mean(name, [cells[each, name] for each in sets], [compared[each, name] for each in sets]) for name in names)
    return Table(tuple(cells.values()), tuple(means), tuple(pooled))


def _cell(question_set: str | None, contender: str, answers: Sequence[TurnRecord], plain: Plain, compared: Resampled | None) -> Cell:
    stats = [answer.stats for answer in answers]
    cycles, seconds = sum(each.cycles for each in stats), sum(each.decode_seconds for each in stats)
    tokens = sum(decoded(answer) for answer in answers)
    draft, verify = sum(each.draft_seconds for each in stats), sum(each.verify_seconds for each in stats)
    waits = np.array([wait for answer in answers for wait in answer.rounds.waits])
    counts = np.array([count for answer in answers for count in answer.rounds.tokens], int)
    wrong = [differing(answer.tokens, plain[answer.set, answer.question, answer.turn]) for answer in answers]
    return Cell(
        set=question_set,
        contender=contender,
        questions=len({(answer.set, answer.question) for answer in answers}),
        answers=len(answers),
        tokens=tokens,
        cycles=cycles,
        tokens_per_second=tokens / seconds if seconds else None,
        ratio=compared.ratio if compared else None,
        tokens_per_cycle=tokens / cycles if cycles else None,
        acceptance=acceptance([accepted for answer in answers for accepted in answer.rounds.accepted]),
        first_token=percentiles(np.array([answer.first_token_seconds for answer in answers])),
        delivery=percentiles(waits) if len(waits) else None,
        token=percentiles(per_token(waits, counts)) if counts.sum() else None,
        prefill_tokens_per_second=sum(each.prompt_tokens for each in stats) / max(1e-9, sum(each.prefill_seconds for each in stats)),
        cycle_ms=1e3 * seconds / cycles if cycles else None,
        draft=draft / seconds if seconds else None,
        verify=verify / seconds if seconds else None,
        host=1 - (draft + verify) / seconds if seconds else None,
        trees=dict(Counter(tree for answer in answers for tree in answer.rounds.trees).most_common()),
        rows=dict(sorted(Counter(rows for answer in answers for rows in answer.rounds.nodes).items())),
        differing_answers=sum(map(bool, wrong)),
        differing_tokens=sum(wrong),
    )


def _mean(contender: str, cells: Sequence[Cell], compared: Sequence[Resampled | None]) -> Mean:
    whole = [each for each in compared if each is not None]
    median, sums = mean_of(whole) if len(whole) == len(cells) else (None, None)
    rate, length = _average([cell.tokens_per_second for cell in cells]), _average([cell.tokens_per_cycle for cell in cells])
    return Mean(contender, rate, length, median, sums)


def _average(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if len(there) == len(values) else None


def acceptance(accepted: Sequence[int]) -> tuple[float, ...]:
    """``accepted``: draft tokens accepted in each round. Of the rounds that accepted i, the share that accepted more; i = 0, 1, ..."""
    reached = [sum(each >= depth for each in accepted) for depth in range(max(accepted, default=0) + 1)]
    return tuple(here / above for above, here in pairwise(reached))


def per_token(waits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Each token's share of the wait for its delivery, [sum of counts]: three tokens delivered after 30 ms took 10 ms each."""
    return np.repeat(waits / np.maximum(counts, 1), counts)


def differing(tokens: tuple[int, ...], plain: tuple[int, ...]) -> int:
    """Positions at which two answers differ, those after the end of the shorter one included."""
    return sum(mine != other for mine, other in zip_longest(tokens, plain))


def percentiles(seconds: np.ndarray) -> Percentiles:
    p50, p99 = np.percentile(1e3 * seconds, (50, 99))
    return Percentiles(float(p50), float(p99))
