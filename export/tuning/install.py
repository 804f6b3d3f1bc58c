"""Writes what was tuned into the manifest: whole or not at all."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from runtime.manifest import FILE_NAME, Manifest, Tuning, load_manifest

from .errors import TuningError


def install(directory: Path, expected: Manifest, tuning: Tuning) -> None:
    """Replace the manifest by one with ``tuning``. Raises TuningError when the engine was exported anew meanwhile."""
    manifest = load_manifest(directory, verify=False)
    if dataclasses.replace(manifest, tuning=None) != dataclasses.replace(expected, tuning=None):
        raise TuningError(f"{directory} was exported anew while it was tuned — tune again")
    partial = directory / f".{FILE_NAME}.partial-{os.getpid()}"
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(dataclasses.replace(manifest, tuning=tuning).to_json())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(directory / FILE_NAME)
    finally:
        partial.unlink(missing_ok=True)
