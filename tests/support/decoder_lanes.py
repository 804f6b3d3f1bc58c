"""What the tests of a Decoder with lanes share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from policy import PLAIN, PartialTree, TreeSpec
from policy.base import Observation, Outcome
from runtime import Decoder, Result, SamplingParams

LANES = 4
PROMPT = list(range(5, 25))
LONG = SamplingParams(max_new_tokens=None)


def forest_of(decoder: Decoder) -> Any:
    assert decoder._lanes is not None
    return decoder._lanes.driver.forest


class Wandering:
    """Goes through trees in turn; grows and verifies a part of each."""

    def __init__(self) -> None:
        self.rounds = 0

    def begin(self) -> None:
        self.rounds = 0

    def choose(self, observation: Observation) -> TreeSpec:
        assert np.isfinite(observation.features).all()
        self.rounds += 1
        return (TreeSpec(12, 4, 3), PLAIN, TreeSpec(4, 3, 1))[self.rounds % 3]

    def should_expand(self, partial_tree: PartialTree) -> bool:
        return partial_tree.level < 3

    def num_nodes(self, partial_tree: PartialTree) -> int:
        return 1 + len(partial_tree.scores) // 2

    def observe(self, outcome: Outcome) -> None:
        assert outcome.tokens >= 1


def expect_same(result: Result, expected: Result) -> None:
    assert (result.tokens, result.text, result.stop) == (expected.tokens, expected.text, expected.stop)
    assert (result.logprobs is None) == (expected.logprobs is None)
    for ours, alone in zip(result.logprobs or (), expected.logprobs or (), strict=True):
        assert ours.logprob == pytest.approx(alone.logprob, abs=1e-4)
        assert [token for token, _ in ours.top] == [token for token, _ in alone.top]
