"""Computes all figures of a run with several clients. Definitions: docs/lab/figures.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from ..figures import Percentiles, differing, per_token, percentiles
from .record import Arrivals, LoadAnswer, LoadMeasurement, LoadTurn

Plain = Mapping[tuple[str, int], tuple[int, ...]]
"""(set, question) -> plain decoding's tokens."""


@dataclass(frozen=True)
class TurnFigures:
    """One turn. Rates are over its seconds, from the first arrival to the last token."""

    tokens_per_second: float
    requests_per_second: float
    prompt_tokens_per_second: float
    first_token: Percentiles
    inter_token: Percentiles | None
    tokens_per_cycle: float | None
    rows_per_pass: float | None
    cached: float


@dataclass(frozen=True)
class LoadCell:
    """One contender under one way of arrival: medians over its turns. None where nothing was decoded after the first tokens. ``lowest`` and
    ``highest``: tokens/s of a turn; ``ratio``: of tokens/s to the first contender's in the same turn; ``cached``: share of the prompt
    tokens that were not computed. Differing answers and tokens are sums over the turns; they differ from plain decoding's."""

    contender: str
    arrivals: Arrivals
    turns: int
    answers: int
    tokens: int
    tokens_per_second: float
    lowest: float
    highest: float
    ratio: float | None
    requests_per_second: float
    prompt_tokens_per_second: float
    first_token: Percentiles | None
    inter_token: Percentiles | None
    tokens_per_cycle: float | None
    rows_per_pass: float | None
    cached: float
    differing_answers: int
    differing_tokens: int


@dataclass(frozen=True)
class LoadTable:
    """``contenders``: names; ratios are over the first one's tokens/s. ``cells``: by way of arrival, then by contender; without those that
    have no turn."""

    contenders: tuple[str, ...]
    arrivals: tuple[Arrivals, ...]
    cells: tuple[LoadCell, ...]


def tabulate(measurement: LoadMeasurement) -> LoadTable:
    """Every figure of every table."""
    plain = {(answer.set, answer.question): answer.tokens for answer in measurement.plain}
    return table_of(measurement.turns, {contender.name: plain for contender in measurement.contenders})


def table_of(turns: Sequence[LoadTurn], expected: Mapping[str, Plain]) -> LoadTable:
    """``expected``: by contender, in the order of the table, the tokens that its answers are compared with."""
    found: dict[tuple[Arrivals, str], list[LoadTurn]] = {}
    for turn in turns:
        found.setdefault((turn.arrivals, turn.contender), []).append(turn)
    arrivals = tuple(dict.fromkeys(turn.arrivals for turn in turns))
    first = next(iter(expected))
    cells = [
        _cell(found[each, contender], found.get((each, first), []), plain)
        for each in arrivals
        for contender, plain in expected.items()
        if (each, contender) in found
    ]
    return LoadTable(tuple(expected), arrivals, tuple(cells))


def _cell(turns: Sequence[LoadTurn], first: Sequence[LoadTurn], plain: Plain) -> LoadCell:
    figures = [turn_figures(turn.answers, turn.passes, turn.rows) for turn in turns]
    rates = [each.tokens_per_second for each in figures]
    others = {turn.number: turn_figures(turn.answers, turn.passes, turn.rows).tokens_per_second for turn in first}
    ratios = [rate / others[turn.number] for rate, turn in zip(rates, turns, strict=True) if turn.number in others]
    answers = [answer for turn in turns for answer in turn.answers]
    wrong = [differing(answer.tokens, plain[answer.set, answer.question]) for answer in answers]
    return LoadCell(
        contender=turns[0].contender,
        arrivals=turns[0].arrivals,
        turns=len(turns),
        answers=len(answers),
        tokens=sum(len(answer.tokens) for answer in answers),
        tokens_per_second=median(rates),
        lowest=min(rates),
        highest=max(rates),
        ratio=median(ratios) if ratios else None,
        requests_per_second=median(each.requests_per_second for each in figures),
        prompt_tokens_per_second=median(each.prompt_tokens_per_second for each in figures),
        first_token=_median_percentiles([each.first_token for each in figures]),
        inter_token=_median_percentiles([each.inter_token for each in figures]),
        tokens_per_cycle=_median([each.tokens_per_cycle for each in figures]),
        rows_per_pass=_median([each.rows_per_pass for each in figures]),
        cached=median(each.cached for each in figures),
        differing_answers=sum(map(bool, wrong)),
        differing_tokens=sum(wrong),
    )


def turn_figures(answers: Sequence[LoadAnswer], passes: int, rows: int) -> TurnFigures:
    """``passes``: verification passes of the turn; ``rows``: rows in them."""
    seconds = max(1e-9, max(answer.end for answer in answers) - min(answer.due for answer in answers))
    prompt, cached = sum(answer.prompt_tokens for answer in answers), sum(answer.cached for answer in answers)
    cycles = sum(answer.cycles for answer in answers)
    waits = np.array([wait for answer in answers for wait in answer.waits])
    counts = np.array([count for answer in answers for count in answer.counts], int)
    return TurnFigures(
        tokens_per_second=sum(len(answer.tokens) for answer in answers) / seconds,
        requests_per_second=len(answers) / seconds,
        prompt_tokens_per_second=(prompt - cached) / seconds,
        first_token=percentiles(np.array([answer.first_token for answer in answers])),
        inter_token=percentiles(per_token(waits, counts)) if len(counts) else None,
        tokens_per_cycle=int(counts.sum()) / cycles if cycles else None,
        rows_per_pass=rows / passes if passes else None,
        cached=cached / prompt,
    )


def _median(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return median(there) if there else None


def _median_percentiles(values: Sequence[Percentiles | None]) -> Percentiles | None:
    there = [value for value in values if value is not None]
    return Percentiles(median(each.p50 for each in there), median(each.p99 for each in there)) if there else None
