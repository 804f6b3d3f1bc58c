"""Requests huge pages from Linux for freshly loaded weights.

A pass reads every weight once, so 4 KiB pages cost a TLB miss per page: 5 to 9 % of a float32 pass (docs/decisions.md). ONNX Runtime has no
setting for it. If the kernel refuses the request, nothing changes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PAGE = 2 << 20  # bytes of a huge page
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25


@contextmanager
def huge_pages_for_new_memory() -> Iterator[None]:
    """Request huge pages for the large private anonymous regions that are mapped inside the block, and for no others."""
    before = set(_regions())
    yield
    new = [region for region in _regions() if region not in before]
    if not new:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in new:
        first, last = -(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE
        if last - first >= _PAGE and madvise(first, last - first, _MADV_HUGEPAGE) == 0:
            madvise(first, last - first, _MADV_COLLAPSE)  # now, instead of when the kernel's background thread gets to it


def _regions() -> Iterator[tuple[int, int]]:
    """(start, end) of writable private anonymous mappings; none if the system has no /proc/self/maps."""
    maps = Path("/proc/self/maps")
    if sys.platform != "linux" or not maps.exists():
        return
    for line in maps.read_text().splitlines():
        span, mode, _, _, inode, *name = line.split()
        if mode == "rw-p" and inode == "0" and not name:
            start, _, end = span.partition("-")
            yield int(start, 16), int(end, 16)
