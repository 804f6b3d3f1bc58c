"""The rule that installs a policy: joined evidence, intervals, and the same choice again and again."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, inf

import numpy as np
import pytest

from export.tuning.evidence import REPLAY_ERROR, Rates, choose, joined, ratio_of

CLOSED = ("none", "fixed", "cost-model")


def measured(speeds: Mapping[str, float], count: int, noise: float, seed: int) -> Rates:
    """Rates on ``count`` prompts that are easy or hard for all, with a deviation of ``noise`` for each policy by itself."""
    random = np.random.default_rng(seed)
    prompts = random.normal(0, 0.3, count)
    return {name: [40 * speed * exp(prompt + random.normal(0, noise)) for prompt in prompts] for name, speed in speeds.items()}


def tuned(speeds: Mapping[str, float], seed: int, recorded: Mapping[str, float] | None = None) -> str:
    return choose(measured(speeds, 12, 0.04, seed), measured(recorded or speeds, 20, 0.02, seed + 1000), CLOSED)


def test_an_equal_trained_policy_is_hardly_ever_installed() -> None:
    speeds = {"none": 1.0, "fixed": 1.3, "cost-model": 1.35, "resps": 1.35, "ltd": 1.34}
    chosen = [tuned(speeds, seed) for seed in range(60)]
    assert chosen.count("cost-model") >= 57


def test_what_is_clearly_faster_is_installed_every_time() -> None:
    speeds = {"none": 1.0, "fixed": 1.3, "cost-model": 1.35, "resps": 1.36, "ltd": 1.45}
    assert {tuned(speeds, seed) for seed in range(30)} == {"ltd"}
    assert {tuned({"none": 1.0, "fixed": 0.9, "cost-model": 0.93}, seed) for seed in range(30)} == {"none"}
    assert {tuned({"none": 1.0, "fixed": 1.2, "cost-model": 1.1}, seed) for seed in range(30)} == {"fixed"}


def test_luck_on_ten_prompts_does_not_outweigh_the_records() -> None:
    """As it happened: 1.022 by the clock, 0.984 on recorded answers."""
    clock = measured({"none": 1.0, "fixed": 1.2, "cost-model": 1.19, "resps": 1.2 * 1.022}, 10, 0.03, 3)
    recorded = measured({"none": 1.0, "fixed": 1.2, "cost-model": 1.2, "resps": 1.2 * 0.984}, 24, 0.02, 4)
    assert choose(clock, recorded, CLOSED) != "resps"


def test_evidence_is_weighted_by_its_error() -> None:
    clock, recorded = measured({"a": 1.1, "b": 1.0}, 10, 0.05, 0), measured({"a": 1.05, "b": 1.0}, 30, 0.01, 1)
    one, two, both = ratio_of(clock, "a", "b"), ratio_of(recorded, "a", "b", REPLAY_ERROR), joined(clock, recorded, "a", "b")
    assert two.error >= REPLAY_ERROR
    assert both.error < min(one.error, two.error)
    assert min(one.log, two.log) < both.log < max(one.log, two.log)
    assert abs(both.log - two.log) < abs(both.log - one.log)
    low, high = both.interval
    assert low < both.value < high


def test_too_few_prompts_say_nothing() -> None:
    rates = {"none": [1.0, 1.0], "fixed": [1.2, 1.3], "cost-model": [1.2, 1.3], "ltd": [2.0, 2.0]}
    assert ratio_of(rates, "ltd", "fixed").error == inf
    assert choose(rates, rates, CLOSED) == "fixed"


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_intervals_hold_the_truth(offset: float) -> None:
    inside = 0
    for seed in range(200):
        rates = measured({"a": exp(offset), "b": 1.0}, 16, 0.05, seed)
        low, high = ratio_of(rates, "a", "b").interval
        inside += low < exp(offset) < high
    assert inside > 180


def test_few_prompts_widen_an_interval_as_students_distribution_says() -> None:
    """Of 2,000 samples of 3, 5 or 12 ratios whose mean is 1, about 95 in 100 have an interval with 1 in it."""
    random = np.random.default_rng(0)
    for count in (3, 5, 12):
        drawn = np.exp(0.05 * random.standard_normal((2000, count)))
        intervals = [ratio_of({"a": list(each), "b": [1.0] * count}, "a", "b").interval for each in drawn]
        assert 0.94 < np.mean([low <= 1 <= high for low, high in intervals]) < 0.97
