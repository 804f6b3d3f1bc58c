"""The cache in host memory: commits move the right rows, layouts keep committed rows, truncation is absolute."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from runtime.backends.base import CacheLayout
from runtime.backends.cpu.kv import KVCache

WHOLE, IN_PARTS = CacheLayout(1, 2, 4, np.dtype(np.float32)), CacheLayout(2, 2, 2, np.dtype(np.float32))


def view(cache: KVCache, name: str = "past.0.key", layout: CacheLayout = WHOLE) -> np.ndarray:
    """A tensor as a call binds it."""
    return cache.tensors()[name][: 2 * cache.span * 4].reshape(layout.parts, layout.heads, cache.span, layout.width)


def filled(span: int = 40, values: CacheLayout = WHOLE) -> KVCache:
    """A cache in which slot s of head h of every tensor holds the value 100 h + s."""
    cache = KVCache(3, WHOLE, values, capacity=40)
    cache.reserve(span)
    for name in cache.tensors():
        layout = values if name.endswith("value") else WHOLE
        view(cache, name, layout)[:] = (100 * np.arange(layout.heads)[:, None] + np.arange(span))[..., None]
    return cache


def expect_rows(cache: KVCache, slots: list[int]) -> None:
    """The committed rows are the original rows ``slots``, in both heads of all tensors."""
    assert cache.rows().shape == (3, 2, 1, 2, len(slots), 4)
    assert (cache.rows() == (100 * np.arange(2)[:, None] + np.array(slots))[..., None]).all()


def test_past_and_present_are_the_same_contiguous_buffer() -> None:
    cache = filled()
    tensors = cache.tensors()
    assert set(tensors) == {f"{side}.{layer}.{kind}" for side in ("past", "present") for layer in range(3) for kind in ("key", "value")}
    view(cache, "past.1.key")[0, 1, 7, 2] = 99
    assert view(cache, "present.1.key")[0, 1, 7, 2] == 99
    assert all(array.shape == (2 * 40 * 4,) and array.flags.c_contiguous for array in tensors.values())


@pytest.mark.parametrize("values", [WHOLE, IN_PARTS], ids=["whole", "in-parts"])
def test_reserve_keeps_what_is_committed(values: CacheLayout) -> None:
    cache = filled(8, values)
    cache.commit(range(6))
    for span in (8, 9, 16, 40):
        cache.reserve(span)
        assert cache.span == span
        expect_rows(cache, [0, 1, 2, 3, 4, 5])
        assert view(cache)[0, 1, 5, 0] == 105
    for bad in (39, 41):
        with pytest.raises(ValueError, match="cannot grow"):
            cache.reserve(bad)
    cache.truncate(0)
    cache.reserve(8)


@pytest.mark.parametrize("values", [WHOLE, IN_PARTS], ids=["whole", "in-parts"])
@pytest.mark.parametrize("path", [[0], [0, 1, 2], [0, 2], [0, 1, 4, 5, 9], [0, 5, 6, 7]])
def test_commit_moves_the_path_down(path: list[int], values: CacheLayout) -> None:
    cache = filled(values=values)
    cache.commit(range(10))
    cache.commit(path)
    assert cache.length == 10 + len(path)
    expect_rows(cache, [*range(10), *(10 + row for row in path)])


def test_truncate_is_absolute_and_bounded() -> None:
    cache = filled()
    cache.commit(range(10))
    cache.truncate(4)
    cache.truncate(4)
    assert cache.length == 4
    for bad in (5, -1):
        with pytest.raises(ValueError, match="truncate"):
            cache.truncate(bad)


def test_an_emptied_cache_keeps_no_nan() -> None:
    """Masked slots have weight zero, and zero times NaN is NaN: one failed request would spoil all later ones."""
    cache = filled()
    cache.commit(range(5))
    for name in cache.tensors():
        view(cache, name)[:] = np.nan
    cache.truncate(0)
    cache.reserve(40)
    assert not any(np.isnan(view(cache, name)).any() for name in cache.tensors())


@pytest.mark.parametrize("kept", [1000, 2000])
def test_changing_the_span_allocates_no_temporary_array(kept: int) -> None:
    """Temporary arrays as large as the cache leave holes in the heap."""
    cache = KVCache(4, WHOLE, IN_PARTS, capacity=4096)
    cache.reserve(2048)
    cache.commit(range(kept))
    tracemalloc.start()
    try:
        cache.reserve(4096)
        cache.truncate(kept // 2)
        assert tracemalloc.get_traced_memory()[1] < 8192
    finally:
        tracemalloc.stop()
    assert cache.span < 2048
