"""Imports TensorRT or TensorRT-RTX, whichever is installed, and checks its version. Importing this module loads neither."""

from __future__ import annotations

import functools
import importlib
import logging
from collections import deque
from typing import Any

from ...errors import EngineDirError

# Python module -> oldest version with all the operators that our graphs use, and the extra that installs it; in order of preference.
_FLAVOURS = {"tensorrt": ((10, 15), "resps[tensorrt]"), "tensorrt_rtx": ((1, 7), "resps[rtx]")}
_MAX_MESSAGES = 32


def load(name: str | None = None) -> Any:
    """The module ``name`` [default: tensorrt, else tensorrt_rtx]. Raises EngineDirError if it is not installed or too old."""
    problems = []
    for flavour in _FLAVOURS if name is None else (name,):
        if flavour not in _FLAVOURS:
            raise EngineDirError(f"there is no TensorRT called {flavour!r} — export again: resps-export --backend tensorrt")
        oldest, extra = _FLAVOURS[flavour]
        try:
            module = importlib.import_module(flavour)
        except ImportError as error:
            reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
            problems.append(f"{flavour} {reason} — pip install '{extra}'")
            continue
        if _version(module.__version__) >= oldest:
            return module
        wanted = ".".join(map(str, oldest))
        problems.append(f"{flavour} {module.__version__} is older than {wanted} — pip install --upgrade '{extra}'")
    raise EngineDirError(problems[0] if len(problems) == 1 else _joined(problems))


def _version(text: str) -> tuple[int, int]:
    major, minor = (int(part) for part in text.split(".")[:2])
    return major, minor


def _joined(problems: list[str]) -> str:
    """One message from several: all facts, then all remedies."""
    facts, remedies = zip(*(problem.split(" — ") for problem in problems), strict=True)
    return f"{' and '.join(facts)} — {' or '.join(remedies)}"


@functools.cache
def logger(module: Any) -> Any:
    """The logger that TensorRT uses in this process. ``messages``: its last errors. -v shows warnings and errors, -vv also information."""
    severity, out = module.ILogger.Severity, logging.getLogger("resps.tensorrt")
    levels = {severity.INTERNAL_ERROR: logging.INFO, severity.ERROR: logging.INFO, severity.WARNING: logging.INFO}

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.messages: deque[str] = deque(maxlen=_MAX_MESSAGES)

        def log(self, kind: Any, text: str) -> None:
            if kind in (severity.INTERNAL_ERROR, severity.ERROR):
                self.messages.append(text)
            if kind != severity.VERBOSE:
                out.log(levels.get(kind, logging.DEBUG), "%s", text)

    return Logger()
