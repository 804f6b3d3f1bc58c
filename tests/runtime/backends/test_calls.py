"""Prepared calls: a limited number is kept, the least recently used goes first, and shared tensors exist once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest

from runtime import Decoder, EngineFailure
from runtime.backends.base import PreparedCalls
from runtime.backends.cpu.onnxruntime import MAX_CALLS, OrtEngine
from runtime.decoding.target import ARANGE
from runtime.decoding.tree import Tree
from runtime.serve.load import warm_up

NAMES = {"slots": ARANGE, "rows": ARANGE}


class CountingCalls(PreparedCalls):
    """Records which calls were bound and which were freed."""

    def __init__(self, max_calls: int) -> None:
        super().__init__(max_calls)
        self.bound: list[int] = []
        self.freed: list[Any] = []

    def _bind(self, names: Mapping[str, str], sizes: Mapping[str, int]) -> Any:
        self.bound.append(sizes["n"])
        return f"call {sizes['n']}"

    def _free(self, call: Any) -> None:
        self.freed.append(call)


def test_the_least_recently_used_call_makes_room() -> None:
    engine = CountingCalls(3)
    for size in (1, 2, 3, 1, 4, 1, 3, 5):
        assert engine.prepare(n=size) == f"call {size}"
    assert engine.bound == [1, 2, 3, 4, 5]
    assert engine.freed == ["call 2", "call 4"]
    engine._free_all()
    assert sorted(engine.freed) == [f"call {size}" for size in range(1, 6)]
    assert engine.prepare(n=1) == "call 1"
    assert engine.bound[-1] == 1


def test_a_size_in_use_stays_however_many_others_are_prepared() -> None:
    engine = CountingCalls(3)
    for size in range(1, 100):
        engine.prepare(n=0)
        engine.prepare(n=size)
    assert engine.bound.count(0) == 1


@pytest.fixture
def target(decoder: Decoder) -> OrtEngine:
    engine = decoder.models.target._engine
    assert isinstance(engine, OrtEngine)
    engine._free_all()
    return engine


def test_calls_of_one_span_share_the_cache(target: OrtEngine) -> None:
    one, other, wider = (target.prepare(NAMES, n=n, span=span, r=n) for n, span in ((2, 64), (3, 64), (3, 128)))
    for name in ("past.0.key", "past.3.value"):
        assert one.inputs[name] is other.inputs[name] is one.outputs[name.replace("past", "present")]
        assert np.shares_memory(one.inputs[name], wider.inputs[name])
        assert one.inputs[name].shape != wider.inputs[name].shape
    assert one.inputs["tokens"] is not other.inputs["tokens"]


def test_memory_for_many_sizes_is_bounded(target: OrtEngine, decoder: Decoder) -> None:
    """With three times as many sizes as are kept, again and again, the number of calls and tensors stays constant."""
    first = ref(target.prepare(NAMES, n=1, span=64, r=1))
    kept = []
    for _ in range(3):
        for count in range(3 * MAX_CALLS):
            target.prepare(NAMES, n=1 + count % 64, span=64 * (1 + count // 64), r=1 + count % 64)
        kept.append((len(target._calls), len(target._tensors)))
    assert first() is None
    assert kept == [(MAX_CALLS, kept[0][1])] * 3
    target._free_all()
    assert len(target._tensors) == 0


def test_a_call_that_is_bound_again_computes_the_same(target: OrtEngine, decoder: Decoder) -> None:
    tree = Tree.chain([3, 4, 5])
    decoder.forget()
    before, first = decoder.models.target.verify(tree).logits.copy(), next(iter(target._calls.values()))
    for count in range(MAX_CALLS):
        target.prepare(NAMES, n=1, span=64 * (1 + count % 2), r=1 + count // 2)
    np.testing.assert_array_equal(decoder.models.target.verify(tree).logits, before)
    assert first not in target._calls.values()


class WaitingDecoder:
    """A Decoder whose warm-up waits until all the others' have begun."""

    def __init__(self, barrier: threading.Barrier, error: Exception | None = None) -> None:
        self._barrier, self._error, self.warmups = barrier, error, 0

    def warmup(self) -> None:
        self._barrier.wait(20)
        self.warmups += 1
        if self._error:
            raise self._error


def test_replicas_warm_up_at_the_same_time_and_twice() -> None:
    barrier = threading.Barrier(3)
    decoders = [WaitingDecoder(barrier) for _ in range(3)]
    warm_up(decoders)  # type: ignore[arg-type]
    assert not barrier.broken
    assert [each.warmups for each in decoders] == [2, 2, 2]


def test_a_failing_warm_up_raises() -> None:
    barrier = threading.Barrier(2)
    with pytest.raises(EngineFailure, match="no memory"):
        warm_up([WaitingDecoder(barrier), WaitingDecoder(barrier, EngineFailure("no memory"))])  # type: ignore[list-item]


def test_a_single_replica_is_warmed_up(tiny_engine: Path) -> None:
    with Decoder(tiny_engine, threads=1) as decoder:
        decoder.models.target._engine._free_all()  # type: ignore[attr-defined]
        warm_up([decoder])
        assert decoder.models.target._engine._calls  # type: ignore[attr-defined]
