"""The cache: commits move the right rows, lengths are absolute."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.kv import KVCache


def filled() -> KVCache:
    """Slot s of every head holds the value s."""
    cache = KVCache(layers=3, kv_heads=2, capacity=40, head_dim=4, dtype=np.dtype(np.float32))
    for array in cache.tensors().values():
        array[:] = np.arange(40, dtype=np.float32)[:, None]
    return cache


def test_tensors_are_views_of_one_allocation_past_and_present_alike() -> None:
    cache = filled()
    tensors = cache.tensors()
    assert set(tensors) == {f"{side}.{layer}.{kind}" for side in ("past", "present") for layer in range(3) for kind in ("key", "value")}
    tensors["past.1.key"][0, 1, 7, 2] = 99
    assert tensors["present.1.key"][0, 1, 7, 2] == 99
    assert all(array.shape == (1, 2, 40, 4) and array.flags.c_contiguous for array in tensors.values())


@pytest.mark.parametrize("path", [[0], [0, 1, 2], [0, 2], [0, 1, 4, 5, 9], [0, 5, 6, 7]])
def test_commit_moves_the_path_down(path: list[int]) -> None:
    cache = filled()
    cache.commit(range(10))
    cache.commit(path)
    assert cache.length == 10 + len(path)
    wanted = [*range(10), *(10 + row for row in path)]
    assert (cache.rows() == np.array(wanted, np.float32)[:, None]).all()
    assert cache.rows().shape == (3, 2, 1, 2, len(wanted), 4)


def test_truncate_is_absolute_and_bounded() -> None:
    cache = filled()
    cache.commit(range(10))
    cache.truncate(4)
    cache.truncate(4)
    assert cache.length == 4
    for bad in (5, -1):
        with pytest.raises(ValueError, match="truncate"):
            cache.truncate(bad)
