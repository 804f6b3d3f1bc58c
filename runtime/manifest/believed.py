"""Which files of an engine directory were hashed before and have not changed since, so that loading need not read gigabytes again.

A small file beside the manifest remembers what every hashed file looked like: size, times of the last change, inode and device. A copied or
edited file looks different and is hashed again. The memory counts only if it belongs to this user and the directory can be written: then
whoever could forge it could replace the manifest as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

from .graphs import sha256_of

FILE_NAME = ".hashed.json"


class Believed:
    """The hashes of one directory. ``trust``: whether to use what was remembered."""

    def __init__(self, directory: Path, trust: bool) -> None:
        self._directory, self._writable = directory, os.access(directory, os.W_OK)
        self._known = _read(directory / FILE_NAME) if trust and self._writable else {}
        self._changed = False

    def sha256(self, path: Path) -> str:
        """The hash of a file in the directory: the remembered one if the file looks as it did then."""
        look = _look(path)
        known = self._known.get(path.name)
        if known is not None and known[1:] == look:
            return str(known[0])
        digest = sha256_of(path)
        if _look(path) == look:  # else it changed meanwhile
            self._known[path.name], self._changed = [digest, *look], True
        return digest

    def save(self) -> None:
        """Remember the hashes. Nothing happens where the directory cannot be written."""
        if not self._changed or not self._writable:
            return
        with contextlib.suppress(OSError):
            handle, scratch = tempfile.mkstemp(dir=self._directory, prefix=f"{FILE_NAME}.")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(self._known, file)
                os.replace(scratch, self._directory / FILE_NAME)
            except BaseException:
                os.unlink(scratch)
                raise


def _look(path: Path) -> list[int]:
    """Size, times of the last change of content and of the inode, inode, device."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _read(file: Path) -> dict[str, list[int | str]]:
    """What was remembered; nothing if the file is missing, damaged or somebody else's."""
    try:
        if os.name == "posix" and (file.is_symlink() or file.stat().st_uid != os.geteuid()):
            return {}
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) and all(isinstance(each, list) and len(each) == 6 for each in known.values()) else {}
