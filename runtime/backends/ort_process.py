"""ONNX Runtime and the process: it is imported without its telemetry, and its sessions outlive a forked child."""

from __future__ import annotations

import ctypes
import os
from typing import Any
from weakref import WeakSet

TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"

_SESSIONS: WeakSet[Any] = WeakSet()


def import_onnxruntime() -> Any:
    """The module. Raises ImportError.

    Official builds send usage data to Microsoft and keep files for it at home. The thread that does so begins at the import, and a forked
    child, which does not have it, would wait for it for ever when it exits. The variable that prevents it is set for the import only; a
    value that was set before holds.
    """
    given = TELEMETRY_VARIABLE in os.environ
    os.environ.setdefault(TELEMETRY_VARIABLE, "1")
    try:
        import onnxruntime
    finally:
        if not given:
            del os.environ[TELEMETRY_VARIABLE]
    return onnxruntime


def keep_in_forks(session: Any) -> None:
    """Never free ``session`` in a forked child: that would wait for its threads, which only the parent has."""
    _SESSIONS.add(session)


def _keep_all() -> None:
    for session in _SESSIONS:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_all)
