"""What resps-train needs of the machine."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.training.budget import HOLES, return_unused, training_bytes


@pytest.mark.parametrize(("rest", "trims"), [(0, 1), (10**15, 0)])
def test_memory_is_given_back_when_the_process_has_more_than_may_rest(rest: int, trims: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=calls.append))
    return_unused(rest)
    assert calls == [0] * trims


def test_what_rests_and_an_update_are_within_what_is_said(target: HuggingFaceCheckpoint) -> None:
    def need(batch_tokens: int, holes: bool = True) -> tuple[int, int]:
        found = training_bytes(target.arch, 50, batch_tokens, 64, 3, 4, 0, holes)
        return found.memory, found.rest

    (small, small_rest), (large, large_rest) = need(128), need(256)
    update = large_rest - small_rest  # of 128 tokens more
    assert update > 0
    assert large - small == pytest.approx((1 + HOLES) * update, abs=1)
    assert need(256, holes=False) == (large_rest, large_rest)
