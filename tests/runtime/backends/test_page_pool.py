"""Which pages a lane gets."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.backends.cpu.paged_cache import PagedCache
from runtime.backends.lane_cache import LaneCache, close_gap
from runtime.backends.page_pool import OutOfPages, PagePool
from runtime.manifest.graphs import PAGE_SLOTS


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


@pytest.mark.parametrize("seed", range(30))
def test_gaps_are_closed_and_every_lane_keeps_what_it_holds(seed: int) -> None:
    random, cache = np.random.default_rng(seed), PagedCache(2, 1, 1, np.dtype(np.float32), 24)
    lanes = [LaneCache(cache) for _ in range(6)]
    for lane in lanes:
        lane.begin(int(random.integers(1, 4 * PAGE_SLOTS)))
    cache.pool.take_highest(2)  # of the prefix cache
    for lane in random.permutation(np.arange(6))[: int(random.integers(1, 6))]:
        lanes[lane].free()
    lanes = [lane for lane in lanes if lane.pages]
    for array in cache._arrays.values():
        array[:] = random.random(array.shape)
    held, free = contents(cache, lanes), cache.pool.free
    while (length := length_of(lanes)) > sum(len(lane.pages) for lane in lanes):
        close_gap(lanes)
        assert length_of(lanes) < length
        assert contents(cache, lanes) == held
        assert cache.pool.free == free
    before = [list(lane.pages) for lane in lanes]
    close_gap(lanes)
    assert [lane.pages for lane in lanes] == before


def length_of(lanes: list[LaneCache]) -> int:
    """Pages of a pass over ``lanes``."""
    pages = [page for lane in lanes for page in lane.pages]
    assert len(set(pages)) == len(pages)
    return max(pages) - min(pages) + 1


def contents(cache: PagedCache, lanes: list[LaneCache]) -> list[list[list[float]]]:
    """What the pages of each lane hold, in its order."""
    return [[array[:, lane.pages].ravel().tolist() for array in cache._arrays.values()] for lane in lanes]


def test_pages_that_others_hold_stay_where_they_are() -> None:
    cache = PagedCache(1, 1, 1, np.dtype(np.float32), 8)
    first, kept, second = LaneCache(cache), LaneCache(cache), LaneCache(cache)
    for lane in (first, kept, second):
        lane.begin(PAGE_SLOTS)
    close_gap([first, second])
    assert (first.pages, kept.pages, second.pages) == ([0], [1], [2])
