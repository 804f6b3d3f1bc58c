"""Backs freshly loaded weights with huge pages where Linux offers them.

A pass streams every weight once, so 4 KiB pages cost a translation miss per page: measured 5 to 9 % of a float32 pass
(docs/decisions.md). ONNX Runtime has no setting for it. Purely a request to the kernel: refused or unsupported, nothing changes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HUGE = 2 << 20
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25


@contextmanager
def huge_pages_for_new_memory() -> Iterator[None]:
    """Ask for huge pages for the large private anonymous regions that appear inside the block. Other memory is left alone."""
    before = set(_regions())
    yield
    new = [region for region in _regions() if region not in before]
    if not new:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in new:
        first, last = -(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE
        if last - first >= _HUGE and madvise(first, last - first, _MADV_HUGEPAGE) == 0:
            madvise(first, last - first, _MADV_COLLAPSE)  # now, instead of whenever the kernel's own thread comes by


def _regions() -> Iterator[tuple[int, int]]:
    """(start, end) of writable private anonymous mappings; none where /proc has no maps."""
    maps = Path("/proc/self/maps")
    if sys.platform != "linux" or not maps.exists():
        return
    for line in maps.read_text().splitlines():
        span, mode, _, _, inode, *name = line.split()
        if mode == "rw-p" and inode == "0" and not name:
            start, _, end = span.partition("-")
            yield int(start, 16), int(end, 16)
