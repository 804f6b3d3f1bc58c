"""The order of sums that int8 and int4 graphs rely on, and the export on a processor with another order."""

from __future__ import annotations

from pathlib import Path

import pytest

import export.build
from export.parity.summation_order import adds_in_order, adds_pages_in_order
from tests.support.exporting import Run, names_in


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_narrow_products_add_in_order(threads: int) -> None:
    assert adds_in_order(threads)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("head_dim", [6, 16, 64, 100, 128, 256])
def test_products_within_a_page_add_in_order_however_wide(head_dim: int, threads: int) -> None:
    assert adds_pages_in_order(head_dim, threads)


def test_wide_products_of_more_slots_do_not() -> None:
    """They sum in shorter blocks, and the check detects it."""
    assert not adds_in_order(width=64)


def test_int8_is_refused_on_a_processor_with_another_order(run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.build, "adds_in_order", lambda: False)
    ended = run("--precision", "int8")
    assert (ended.code, names_in(engines)) == (1, set())
    assert "do not sum in a fixed order" in ended.err
    assert "use --precision fp32 or bf16" in ended.err
    assert run().code == 0
