"""Installs an engine directory: writes it to a scratch directory beside the destination and renames it when complete."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from ..errors import ExportError
from .owned import expect_replaceable


def destination(directory: Path) -> Path:
    """Where an engine called ``directory`` lies: the place that it links to, so that the link stays, or ``directory`` itself."""
    return Path(os.path.realpath(directory)) if directory.is_symlink() else directory


def expect_folder(out: Path, writable: bool) -> None:
    """Raises ExportError if ``out`` neither is a folder nor can become one. ``writable``: whether it must be writable too."""
    for place in (out, *out.parents):
        if place.is_dir():
            if writable and not os.access(place, os.W_OK | os.X_OK):
                raise ExportError(f"{place} cannot be written to — change its permissions, or choose another --out")
            return
        if os.path.lexists(place):
            raise ExportError(f"{place} is not a folder, so engine directories cannot be below it — choose another --out")


def move_into_place(scratch: Path, directory: Path) -> None:
    """Move ``scratch`` to ``directory`` by rename. An existing engine is exchanged atomically where the system supports it.

    Raises ExportError if meanwhile there are files in ``directory`` that the exporter did not write."""
    for file in scratch.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    expect_replaceable(directory)
    if not directory.exists():
        scratch.rename(directory)
    elif not _exchange(scratch, directory):
        old = scratch.with_name("old")  # within the same locked directory
        directory.rename(old)
        try:
            scratch.rename(directory)
        except BaseException:
            old.rename(directory)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories atomically with Linux's renameat2; False where the system or file system has no such call."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    at_cwd, exchange = -100, 2
    return renameat2 is not None and renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0
