"""The order of sums that quantized graphs rely on, and what happens where a processor has another."""

from __future__ import annotations

from pathlib import Path

import pytest

import export.build
from export.parity.summation_order import adds_in_order
from tests.support.exporting import Run, names_in


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_narrow_products_add_one_slot_after_the_other(threads: int) -> None:
    assert adds_in_order(threads)


def test_wide_products_do_not() -> None:
    """They take the slots in shorter stretches: the check can tell."""
    assert not adds_in_order(width=64)


def test_a_processor_of_another_order_gets_no_integer_weights(run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.build, "adds_in_order", lambda: False)
    refused = run("--precision", "int8")
    assert (refused.code, names_in(engines)) == (1, set())
    assert "an order of their own" in refused.err
    assert "use --precision fp32 or bf16" in refused.err
    assert run().code == 0
