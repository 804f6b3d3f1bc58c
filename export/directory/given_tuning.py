"""Reads the tuning given with --policy: from an engine directory, or from a tuning bundled with a draft."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import EngineDirError
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import read_manifest
from runtime.manifest.tuning_fit import PolicyLimits

from ..errors import ExportError, UnfitPolicy
from .bundled_tuning import FILE, read_bundled
from .found_tuning import FoundTuning


def given_tuning(path: Path, draft: str | None, limits: PolicyLimits) -> FoundTuning:
    """``path``: an engine directory, a folder with a tuning.json, or the JSON file of either. ``draft``: hash of the weights of the draft
    that is exported, None if unknown. Raises UnfitPolicy if the tuning cannot be read or does not fit."""
    file = next((path / name for name in (FILE_NAME, FILE) if (path / name).is_file()), path)
    try:
        found = _tuned_engine(file.parent) if file.name == FILE_NAME else read_bundled(file)
        found.expect_whole()
    except (EngineDirError, ExportError) as problem:
        raise UnfitPolicy(str(problem)) from None
    if reason := found.problem(draft, limits):
        raise UnfitPolicy(f"{file} does not fit this export: {reason} — tune this engine instead: resps-tune --engine-dir DIR")
    return found


def _tuned_engine(directory: Path) -> FoundTuning:
    manifest = read_manifest(directory)
    if manifest.tuning is None or manifest.draft is None:
        raise ExportError(f"{directory} has no tuned policy — tune it first: resps-tune --engine-dir {directory}")
    return FoundTuning(directory / FILE_NAME, manifest.tuning, manifest.draft.weights_sha256)
