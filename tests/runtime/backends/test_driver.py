"""Copies of the CUDA driver, with CUDA's own structures and a copy on the host that reads them as CUDA's manual says."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart

from runtime.backends.cuda.driver import Cuda


def copy_3d(copy: Any, stream: int) -> tuple[Any, ...]:
    """A row is ``width`` bytes, rows start ``pitch`` bytes apart, slices ``pitch`` times ``ysize``."""
    assert (stream, copy.kind) == (7, cudart.cudaMemcpyKind.cudaMemcpyDefault)
    for block in range(copy.extent.depth):
        for row in range(copy.extent.height):
            target, source = (int(each.ptr) + (block * each.ysize + row) * each.pitch for each in (copy.dstPtr, copy.srcPtr))
            ctypes.memmove(target, source, copy.extent.width)
    return (cudart.cudaError_t.cudaSuccess,)


def test_a_slot_of_all_heads_and_tensors_is_one_copy() -> None:
    names = "cudaMemcpy3DParms", "make_cudaPitchedPtr", "make_cudaExtent"
    cuda = Cuda.__new__(Cuda)
    cuda._api = SimpleNamespace(cudaMemcpy3DAsync=copy_3d, **{name: getattr(cudart, name) for name in names})
    cuda._ok, cuda._kind, cuda.stream = cudart.cudaError_t.cudaSuccess, cudart.cudaMemcpyKind.cudaMemcpyDefault, 7
    tensors = np.random.default_rng(0).standard_normal((6, 4, 3, 10, 16), np.float32)  # tensors, pages, heads, slots, width
    expected, row = tensors.copy(), 16 * 4
    expected[:, 2, :, 5] = expected[:, 2, :, 8]
    page = tensors.ctypes.data + 2 * 3 * 10 * row
    cuda.copy_blocks(page + 5 * row, page + 8 * row, row, (3, 10 * row), (6, 4 * 3 * 10 * row))
    np.testing.assert_array_equal(tensors, expected)
