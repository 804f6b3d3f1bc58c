"""Installs an engine directory: writes it to a scratch directory beside the destination and renames it when complete."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import ExportError
from .owned import expect_replaceable


def expect_folder(out: Path) -> None:
    """Raises ExportError if ``out`` neither is a folder that can be written to nor can become one."""
    for place in (out, *out.parents):
        if place.is_dir():
            if not os.access(place, os.W_OK | os.X_OK):
                raise ExportError(f"{place} cannot be written to — change its permissions, or choose another --out")
            return
        if os.path.lexists(place):
            raise ExportError(f"{place} is not a folder, so engine directories cannot be below it — choose another --out")


@contextlib.contextmanager
def scratch_directory(directory: Path) -> Iterator[Path]:
    """A hidden directory beside ``directory``, removed on exit. Also removes scratch directories of killed runs."""
    prefix = f".{directory.name}.partial-"
    for stale in directory.parent.glob(f"{glob.escape(prefix)}*"):
        owner = stale.name.removeprefix(prefix).split("-")[0]
        if owner.isdecimal() and len(owner) < 10 and not _alive(int(owner)):
            shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=directory.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


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
        old = scratch.with_name(f"{scratch.name}.old")
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
