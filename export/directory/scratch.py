"""Scratch directories beside a destination, locked while the process that made them lives.

A process id would not do: processes in two containers that share a volume have ids of their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOCK_FILE = "lock"


@contextlib.contextmanager
def scratch_directory(directory: Path) -> Iterator[Path]:
    """An empty directory on the file system of ``directory``, removed on exit. It lies in a hidden directory beside ``directory`` that also
    has a locked file. Also removes the hidden directories of killed runs, whose lock the system has released."""
    prefix = f".{directory.name}.partial-"
    for other in directory.parent.glob(f"{glob.escape(prefix)}*"):
        _remove_if_left(other)
    hidden = Path(tempfile.mkdtemp(prefix=prefix, dir=directory.parent))
    try:
        hidden.chmod(0o755)
        with _locked(hidden):
            scratch = hidden / "new"
            scratch.mkdir()
            scratch.chmod(0o755)
            yield scratch
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


@contextlib.contextmanager
def _locked(hidden: Path) -> Iterator[None]:
    """A lock file in ``hidden``, which has its final name only when it is locked. Where the file system has no locks it never has that
    name, and no other run removes the directory."""
    descriptor = os.open(hidden / f"{LOCK_FILE}.new", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(hidden / f"{LOCK_FILE}.new", hidden / LOCK_FILE)
        yield
    finally:
        os.close(descriptor)


def _remove_if_left(hidden: Path) -> None:
    """Remove it if it has a lock file that no process holds."""
    try:
        descriptor = os.open(hidden / LOCK_FILE, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(hidden, ignore_errors=True)
    finally:
        os.close(descriptor)
