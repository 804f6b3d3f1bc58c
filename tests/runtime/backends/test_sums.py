"""How this processor's products add, and an engine that came from another one."""

from __future__ import annotations

import pytest

from runtime.backends.cpu.sums import adds_in_order, adds_pages_in_order


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
