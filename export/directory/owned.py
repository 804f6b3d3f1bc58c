"""Which files of a directory the exporter or resps-tune wrote. An export replaces no others."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from runtime.manifest.believed import FILE_NAME as HASHED
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.kept_costs import FILE_NAME as COSTS
from runtime.manifest.tuning import FILE_PREFIX

from ..errors import ExportError
from ..tensorrt.builder import TIMING_CACHE

_TUNED = re.compile(re.escape(FILE_PREFIX) + r"[0-9a-f]{12}\.(onnx|plan)")
_SHOWN = 3  # names of foreign files in a message


def is_tuned(name: str) -> bool:
    """Whether a tuning's files have such names."""
    return _TUNED.fullmatch(name) is not None


def expect_replaceable(directory: Path) -> None:
    """Raises ExportError if ``directory`` holds anything that neither the exporter nor resps-tune wrote."""
    if not os.path.lexists(directory) or (directory.is_dir() and not any(directory.iterdir())):
        return
    manifest = _manifest(directory)
    if manifest is None:
        raise ExportError(f"{directory} exists and is not an engine directory — move it away, or choose another --out or --name")
    foreign = sorted(entry.name for entry in directory.iterdir() if not _is_ours(entry, manifest))
    if foreign:
        names = ", ".join([*foreign[:_SHOWN], *(["..."] if len(foreign) > _SHOWN else [])])
        raise ExportError(f"{directory} also holds files that are not the engine's: {names} — move them away, or choose another --name")


def _manifest(directory: Path) -> dict[str, Any] | None:
    """Our manifest, of any schema. None if there is none or it cannot be read. Other software also writes files called manifest.json."""
    file = directory / FILE_NAME
    try:
        manifest = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or type(manifest.get("schema")) is not int:
        return None
    return manifest if all(isinstance(manifest.get(key), dict) for key in ("graphs", "files")) else None


def _is_ours(entry: Path, manifest: dict[str, Any]) -> bool:
    if entry.name.startswith(".tuning.partial-"):  # a tuning's scratch directory
        return True
    if entry.is_dir() and not entry.is_symlink():
        return False
    tuning = manifest.get("tuning")
    tuned = tuning.get("files") if isinstance(tuning, dict) else None
    listed = {FILE_NAME, HASHED, COSTS, TIMING_CACHE, *manifest["files"], *(tuned if isinstance(tuned, dict) else ())}
    return entry.name in listed or is_tuned(entry.name) or entry.name.startswith((f"{HASHED}.", f"{COSTS}."))
