"""Text that people give on standard input and in files: UTF-8, perhaps with a byte order mark and with Windows' line ends."""

from __future__ import annotations

from pathlib import Path


def decoded(data: bytes) -> str:
    """The text, without byte order mark, with "\\n" at the end of every line. Raises UnicodeDecodeError."""
    return data.decode("utf-8-sig").replace("\r\n", "\n")


def read_text(file: Path) -> str:
    """The text of a file, likewise. Raises OSError and UnicodeDecodeError."""
    return decoded(file.read_bytes())
