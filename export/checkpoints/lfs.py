"""Git LFS pointers: small text files that stand where a repository was cloned without its large files."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError

_BEGINNING = b"version https://git-lfs.github.com/spec/"


def is_pointer(file: Path) -> bool:
    """Whether a file is a pointer. Raises OSError if it cannot be read."""
    with file.open("rb") as content:
        return content.read(len(_BEGINNING)) == _BEGINNING


def refuse_pointer(file: Path) -> None:
    """Raises CheckpointError for a pointer, OSError if the file cannot be read."""
    if is_pointer(file):
        raise CheckpointError(f"{file} is a Git LFS pointer, not the file itself — run git lfs pull in {file.parent}, or download the file")
