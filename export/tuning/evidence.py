"""Which policy is installed. The rule joins what the clock and the recorded answers say, and installs nothing by luck.

Both give ratios of two policies, one for every prompt or answer. Their logarithms have a mean and a standard error; the two means are
weighted by the inverse of their variances. A replay also has an error of its own, because its costs are a model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from statistics import mean, stdev

REPLAY_ERROR = 0.01  # of a ratio: predicted and timed ratios of fixed trees differ by up to that (docs/lab/policies.md)
CERTAIN = 2.0  # standard errors on each side of an interval
FEWEST = 3  # ratios that say anything about their error


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one policy is as another: the logarithm of the ratio and its standard error."""

    log: float
    error: float

    @property
    def value(self) -> float:
        return exp(self.log)

    @property
    def interval(self) -> tuple[float, float]:
        """About 95 times in 100 the ratio lies between these."""
        return exp(self.log - CERTAIN * self.error), exp(self.log + CERTAIN * self.error)


Rates = Mapping[str, Sequence[float]]
"""Tokens per second of each policy on each prompt; the prompts are the same ones in the same order."""


def ratio_of(rates: Rates, name: str, other: str, systematic: float = 0.0) -> Ratio:
    """How ``name`` compares with ``other``. ``systematic``: an error that more prompts do not lessen."""
    logs = [log(ours / theirs) for ours, theirs in zip(rates[name], rates[other], strict=True)]
    chance = _wider(len(logs)) * stdev(logs) / sqrt(len(logs)) if len(logs) >= FEWEST else inf
    return Ratio(mean(logs), sqrt(chance**2 + systematic**2))


def _wider(count: int) -> float:
    """How much wider an interval has to be because ``count`` ratios do not say well how they spread: Student's quantile of 97.5 % over
    CERTAIN (the first terms of its expansion by Cornish and Fisher)."""
    freedom = count - 1
    return max(1.0, (1.96 + 2.37 / freedom + 2.82 / freedom**2 + 2.56 / freedom**3) / CERTAIN)


def joined(clock: Rates, recorded: Rates, name: str, other: str) -> Ratio:
    """What both say together."""
    found = [ratio_of(clock, name, other), ratio_of(recorded, name, other, REPLAY_ERROR)]
    weights = [1 / max(each.error, 1e-6) ** 2 for each in found]
    if not sum(weights):
        return Ratio(mean(each.log for each in found), inf)
    return Ratio(sum(weight * each.log for weight, each in zip(weights, found, strict=True)) / sum(weights), 1 / sqrt(sum(weights)))


def choose(clock: Rates, recorded: Rates, closed: Sequence[str]) -> str:
    """The policy to install. ``closed``: those that were not trained, the simplest first; among them the fastest wins. A trained policy
    has to be faster than that one beyond doubt: the whole interval of their ratio lies above 1."""
    best = closed[0]
    for name in closed[1:]:
        if joined(clock, recorded, name, best).log > 0:
            best = name
    trained = {name: joined(clock, recorded, name, best).interval[0] for name in clock if name not in closed}
    winner = max(trained, key=lambda name: trained[name], default=best)
    return winner if trained.get(winner, 0.0) > 1 else best
