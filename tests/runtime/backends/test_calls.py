"""Prepared calls: few are kept, the unused go first, and what they share is held once."""

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
from runtime.decoding.target import ORDER
from runtime.decoding.tree import Tree
from runtime.serve.load import warm_up

NAMES = {"slots": ORDER, "rows": ORDER}


class Counted(PreparedCalls):
    """Remembers what was made and what was freed."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.made: list[int] = []
        self.freed: list[Any] = []

    def _bind(self, names: Mapping[str, str], sizes: Mapping[str, int]) -> Any:
        self.made.append(sizes["n"])
        return f"call {sizes['n']}"

    def _free(self, call: Any) -> None:
        self.freed.append(call)


def test_the_call_that_was_not_asked_for_the_longest_makes_room() -> None:
    engine = Counted(3)
    for size in (1, 2, 3, 1, 4, 1, 3, 5):
        assert engine.prepare(n=size) == f"call {size}"
    assert engine.made == [1, 2, 3, 4, 5]
    assert engine.freed == ["call 2", "call 4"]
    engine._drop()
    assert sorted(engine.freed) == [f"call {size}" for size in range(1, 6)]
    assert engine.prepare(n=1) == "call 1"
    assert engine.made[-1] == 1


def test_a_size_in_use_is_not_made_again_however_many_others_come() -> None:
    engine = Counted(3)
    for size in range(1, 100):
        engine.prepare(n=0)
        engine.prepare(n=size)
    assert engine.made.count(0) == 1


@pytest.fixture
def target(decoder: Decoder) -> OrtEngine:
    engine = decoder._target._engine
    assert isinstance(engine, OrtEngine)
    engine._drop()
    return engine


def test_calls_of_one_span_share_the_cache(target: OrtEngine) -> None:
    one, other, wider = (target.prepare(NAMES, n=n, span=span, r=n) for n, span in ((2, 64), (3, 64), (3, 128)))
    for name in ("past.0.key", "past.3.value"):
        assert one.inputs[name] is other.inputs[name] is one.outputs[name.replace("past", "present")]
        assert np.shares_memory(one.inputs[name], wider.inputs[name])
        assert one.inputs[name].shape != wider.inputs[name].shape
    assert one.inputs["tokens"] is not other.inputs["tokens"]


def test_what_many_sizes_leave_is_bounded(target: OrtEngine, decoder: Decoder) -> None:
    """Three times as many sizes as are kept, round and round: no call and no tensor outlives its last use."""
    first = ref(target.prepare(NAMES, n=1, span=64, r=1))
    held = []
    for _ in range(3):
        for count in range(3 * MAX_CALLS):
            target.prepare(NAMES, n=1 + count % 64, span=64 * (1 + count // 64), r=1 + count % 64)
        held.append((len(target._calls), len(target._tensors)))
    assert first() is None
    assert held == [(MAX_CALLS, held[0][1])] * 3
    target._drop()
    assert len(target._tensors) == 0


def test_a_call_made_anew_computes_the_same(target: OrtEngine, decoder: Decoder) -> None:
    tree = Tree.chain([3, 4, 5])
    decoder.forget()
    before, first = decoder._target.verify(tree).logits.copy(), next(iter(target._calls.values()))
    for count in range(MAX_CALLS):
        target.prepare(NAMES, n=1, span=64 * (1 + count % 2), r=1 + count // 2)
    np.testing.assert_array_equal(decoder._target.verify(tree).logits, before)
    assert first not in target._calls.values()


class Warming:
    """Stands for a Decoder whose warm-up ends when the other's has begun."""

    def __init__(self, together: threading.Barrier, error: Exception | None = None) -> None:
        self._together, self._error, self.times = together, error, 0

    def warmup(self) -> None:
        self._together.wait(20)
        self.times += 1
        if self._error:
            raise self._error


def test_replicas_warm_up_at_the_same_time_and_twice() -> None:
    together = threading.Barrier(3)
    all_of_them = [Warming(together) for _ in range(3)]
    warm_up(all_of_them)  # type: ignore[arg-type]
    assert not together.broken
    assert [each.times for each in all_of_them] == [2, 2, 2]


def test_a_warm_up_that_fails_is_told() -> None:
    together = threading.Barrier(2)
    with pytest.raises(EngineFailure, match="no memory"):
        warm_up([Warming(together), Warming(together, EngineFailure("no memory"))])  # type: ignore[list-item]


def test_a_replica_alone_is_warmed_up_too(tiny_engine: Path) -> None:
    with Decoder(tiny_engine, threads=1) as decoder:
        decoder._target._engine._drop()  # type: ignore[attr-defined]
        warm_up([decoder])
        assert decoder._target._engine._calls  # type: ignore[attr-defined]
