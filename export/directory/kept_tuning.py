"""Keeps the tuning of an engine directory that is exported again, if the new engine is bit-identical to the old one."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from runtime.errors import EngineDirError
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import read_manifest
from runtime.manifest.tuning import Tuning

from .found_tuning import is_whole

_log = logging.getLogger("resps")


def keep(directory: Path, engine_id: str, scratch: Path) -> Tuning | None:
    """Copy the tuning of the engine in ``directory`` to ``scratch`` and return it. ``engine_id``: of the new engine. None if there is no
    tuning or it does not fit the new engine (logs a warning)."""
    if not (directory / FILE_NAME).is_file():
        return None
    try:
        tuning = read_manifest(directory).tuning
    except EngineDirError:
        _say_dropped(directory, "a tuning, if there is one, cannot be read by this version")
        return None
    if tuning is None or tuning.portable:  # a tuning bundled with the draft is installed again
        return None
    broken = [name for name, expected in tuning.files.items() if not is_whole(directory, name, expected)]
    if tuning.engine != engine_id or broken:
        why = f"of its tuning {broken[0]} is missing or changed" if broken else "its tuning is for another engine"
        _say_dropped(directory, why)
        return None
    for name in tuning.files:
        shutil.copyfile(directory / name, scratch / name)
    _log.info("%s: its tuning is kept, the engine is the same", directory)
    return tuning


def _say_dropped(directory: Path, why: str) -> None:
    _log.warning("%s: %s and is dropped — tune again: resps-tune --engine-dir %s", directory, why, directory)
