"""The latency model gives whole rounds what they took."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from export.tuning.replay.latency import LEAST_REPEATS, ROUND_TOKENS, _round_ms, as_in_rounds, measure_latency
from policy import PLAIN, FixedPolicy, LatencyModel, TreeSpec
from runtime import Decoder, SamplingParams

ROWS = (1, 2, 4, 8)
PARTS = LatencyModel(ROWS, (128, 512), ((10.0, 11.0, 12.0, 14.0), (20.0, 21.0, 22.0, 24.0)), (1, 2), (1, 3), ((1.0, 2.0), (2.0, 3.0)), 0.5)
TREE = TreeSpec(4, 3, 2)


@pytest.mark.parametrize("plain", [9.0, 12.0])
@pytest.mark.parametrize("tree", [14.0, 18.0])
def test_rounds_take_what_they_took(plain: float, tree: float) -> None:
    found = as_in_rounds(PARTS, {PLAIN: plain, TREE: tree})
    assert found.round_with(PLAIN, ROUND_TOKENS) == pytest.approx(plain)
    assert found.round_with(TREE, ROUND_TOKENS) == pytest.approx(tree)
    assert found.verify(1, 512) - found.verify(1, 128) == pytest.approx(10)  # what a longer context adds stays
    assert found.verify(8, 128) - found.verify(4, 128) == pytest.approx(2)


class Streaming:
    """A Decoder whose rounds take the seconds of ``rounds``, with what proposed their trees."""

    manifest = SimpleNamespace(shape=SimpleNamespace(vocab=50))

    def __init__(self, *rounds: tuple[float, str]) -> None:
        self.rounds = [None, *(SimpleNamespace(seconds=seconds, tree=SimpleNamespace(source=source)) for seconds, source in rounds)]

    def stream(self, prompt: list[int], params: SamplingParams, policy: FixedPolicy) -> AbstractContextManager[Any]:
        assert params.ignore_eos
        return nullcontext(SimpleNamespace(round=each) for each in self.rounds)


def test_the_rounds_of_lookups_do_not_count_as_rounds_of_the_tree() -> None:
    drafted, copied = (0.020, "draft"), (0.090, "lookup")
    assert _round_ms(cast(Decoder, Streaming(drafted, copied, (0.030, "draft"))), TREE, 8) == pytest.approx(25)
    assert _round_ms(cast(Decoder, Streaming(copied)), TREE, 8) == pytest.approx(90)


def test_measuring_ends_when_its_time_is_over(echo_engine: Path) -> None:
    shares: list[float] = []
    with Decoder(echo_engine, policy="fixed", threads=1) as decoder:
        latency = measure_latency(decoder, (1, 2), (1, 2), 4, perf_counter(), shares.append)
    assert len(shares) == LEAST_REPEATS
    assert all(ms > 0 for line in latency.verify_ms for ms in line)
