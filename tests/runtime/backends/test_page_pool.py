"""Which pages a lane gets."""

from __future__ import annotations

import pytest

from runtime.backends.page_pool import OutOfPages, PagePool


def test_a_lane_gets_the_lowest_adjacent_pages_and_any_where_none_are_adjacent() -> None:
    pool = PagePool(8)
    lanes = [pool.take(2) for _ in range(4)]
    assert lanes == [[0, 1], [2, 3], [4, 5], [6, 7]]
    with pytest.raises(OutOfPages):
        pool.take(1)
    pool.give_back(lanes[0])
    pool.give_back(lanes[2])
    assert pool.take(1) == [0]
    assert pool.take(2) == [4, 5]
    pool.give_back([4, 5])
    with pytest.raises(OutOfPages):
        pool.take(3)
    assert pool.take(3, scattered=True) == [1, 4, 5]  # as many are free, nowhere side by side
    with pytest.raises(OutOfPages):
        pool.take(1, scattered=True)
    assert pool.free == 0
