"""A file that gets lines of JSON, also while logrotate moves it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from ..errors import ServeError

STANDARD_OUTPUT = Path("-")


class JsonLines:
    """Appends to ``file``, which is made if it is missing; ``-`` is standard output. Whoever can write there gets no line break in: each
    object is one line. Raises ServeError if the file cannot be opened. A full disk loses lines, not requests."""

    def __init__(self, file: Path) -> None:
        try:
            self._handler: logging.Handler = (
                logging.StreamHandler(sys.stdout) if file == STANDARD_OUTPUT else WatchedFileHandler(file, encoding="utf-8")
            )
        except OSError as error:
            raise ServeError(f"cannot write {file}: {error.strerror} — check permissions, or choose another place") from None
        self._handler.handleError = _ignore  # type: ignore[method-assign]  # it would print the line, with what it holds

    def write(self, value: Mapping[str, Any]) -> None:
        line = json.dumps(value, ensure_ascii=True)
        self._handler.handle(logging.LogRecord("resps", logging.INFO, "", 0, line, (), None))

    def close(self) -> None:
        self._handler.close()


def _ignore(record: logging.LogRecord) -> None:
    """Nothing can be done about a full disk here."""
