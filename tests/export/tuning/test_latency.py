"""The latency model gives whole rounds what they took."""

from __future__ import annotations

import pytest

from export.tuning.replay.latency import ROUND_TOKENS, as_in_rounds
from policy import PLAIN, LatencyModel, TreeSpec

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
