"""Speed of a contender over plain decoding, with confidence intervals by bootstrap over questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .record import TurnRecord

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # per cent


@dataclass(frozen=True)
class Spread:
    """A figure with its 95 % bootstrap interval over questions; no interval if there is only one question."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Ratio:
    """tokens/s over the baseline's. ``median`` and ``quartiles``: of the questions' ratios; ``sums``: ratio of the total rates, each all
    tokens over all seconds."""

    median: Spread
    quartiles: tuple[float, float]
    sums: Spread


@dataclass(frozen=True)
class Resampled:
    """A ratio of ``questions`` questions; ``medians`` and ``sums`` [RESAMPLES]: the ratio of each bootstrap sample."""

    ratio: Ratio
    questions: int
    medians: np.ndarray
    sums: np.ndarray


def decoded(answer: TurnRecord) -> int:
    """Tokens without the first one, which prefill produces."""
    return max(0, answer.stats.new_tokens - 1)


def compare(answers: Sequence[TurnRecord], plain: Sequence[TurnRecord]) -> Resampled | None:
    """A contender's answers to one set against the baseline's, all turns of a question together. Questions for which either decoded
    nothing have no speed and are left out; None if no question is left."""
    mine, theirs = _by_question(answers), _by_question(plain)
    usable = [key for key in mine if min(*mine[key], *theirs[key]) > 0]
    if not usable:
        return None
    each = np.array([[*mine[key], *theirs[key]] for key in usable])  # [questions, 4]: tokens and seconds of both
    rates = _over(each)
    drawn = np.random.default_rng(0).integers(len(usable), size=(RESAMPLES, len(usable)))
    medians, sums = np.median(rates[drawn], axis=1), _over(each[drawn].sum(axis=1))
    quartiles = np.percentile(rates, (25, 75))
    median = _spread(float(np.median(rates)), medians, len(usable))
    total = _spread(float(_over(each.sum(axis=0))), sums, len(usable))
    return Resampled(Ratio(median, (float(quartiles[0]), float(quartiles[1])), total), len(usable), medians, sums)


def mean_of(sets: Sequence[Resampled]) -> tuple[Spread, Spread]:
    """Means of the sets' medians and of their ratios of sums, every set with the same weight; questions are resampled within each set."""
    questions = min(each.questions for each in sets)
    rng = np.random.default_rng(1)  # with the same samples in all sets their errors would add up
    medians = np.mean([rng.permutation(each.medians) for each in sets], axis=0)
    sums = np.mean([rng.permutation(each.sums) for each in sets], axis=0)
    median = float(np.mean([each.ratio.median.value for each in sets]))
    total = float(np.mean([each.ratio.sums.value for each in sets]))
    return _spread(median, medians, questions), _spread(total, sums, questions)


def _over(sums: np.ndarray) -> np.ndarray:
    """[..., 4]: tokens and seconds of both -> ratio of rates [...]."""
    return np.asarray(sums[..., 0] / sums[..., 1] / (sums[..., 2] / sums[..., 3]))


def _by_question(answers: Sequence[TurnRecord]) -> dict[int, tuple[float, float]]:
    """Tokens and seconds of each question."""
    found: dict[int, tuple[float, float]] = {}
    for answer in answers:
        tokens, seconds = found.get(answer.question, (0.0, 0.0))
        found[answer.question] = (tokens + decoded(answer), seconds + answer.stats.decode_seconds)
    return found


def _spread(value: float, drawn: np.ndarray, questions: int) -> Spread:
    if questions < 2:
        return Spread(value, None, None)
    low, high = np.percentile(drawn, INTERVAL)
    return Spread(value, float(low), float(high))
