"""Bundled tunings: the result of resps-tune on some machine, stored with the draft in its folder tuning/PRECISION.

The best trees also depend on the machine, so a bundled tuning is only a default. The watchdog supervises it, and running resps-tune
replaces it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

from runtime.manifest.check import check_tuning
from runtime.manifest.graphs import sha256_of
from runtime.manifest.tuning import Tuning
from runtime.manifest.tuning_fit import PolicyLimits
from runtime.manifest.typed_json import Malformed, decode

from ..errors import ExportError
from .found_tuning import FoundTuning

FOLDER, FILE, WEIGHTS = "tuning", "tuning.json", "model.safetensors"

_log = logging.getLogger("resps")


@dataclasses.dataclass(frozen=True)
class BundledTuning:
    """Contents of tuning.json. ``draft``: hash of the weights of the draft that was tuned."""

    draft: str
    tuning: Tuning


def write_bundled(draft: Path, precision: str, tuning: Tuning, engine_dir: Path) -> Path:
    """Copy the tuning of ``engine_dir`` to the folder ``draft``, and return the new folder below it."""
    folder = draft / FOLDER / precision
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in tuning.files:
        shutil.copyfile(engine_dir / name, folder / name)
    bundled = BundledTuning(sha256_of(draft / WEIGHTS), dataclasses.replace(tuning, portable=True))
    (folder / FILE).write_text(json.dumps(dataclasses.asdict(bundled), indent=1) + "\n", encoding="utf-8")
    return folder


def bundled_digest(draft: Path, precision: str) -> str | None:
    """Hash of the tuning bundled with the draft in the folder ``draft``; None if there is none."""
    file = draft / FOLDER / precision / FILE
    return sha256_of(file) if file.is_file() else None


def read_bundled(file: Path) -> FoundTuning:
    """Read a tuning.json. Raises ExportError if it is unreadable or malformed."""
    try:
        bundled: BundledTuning = decode(BundledTuning, json.loads(file.read_text(encoding="utf-8")), "tuning")
        check_tuning(bundled.tuning, plans=False)
    except (OSError, ValueError, Malformed) as problem:
        raise ExportError(
            f"cannot read {file}: {problem} — remove the folder, or make it again with scripts/lab/bundle_tuning.py"
        ) from None
    return FoundTuning(file, bundled.tuning, bundled.draft)


def bundled_tuning(draft: Path, sha256: str, precision: str, limits: PolicyLimits) -> FoundTuning | None:
    """The tuning bundled with the draft in the folder ``draft``. ``sha256``: hash of the draft's weights. None if absent, or if it does not
    fit (logs a warning). Raises ExportError if it is damaged."""
    file = draft / FOLDER / precision / FILE
    if not file.is_file():
        return None
    found = read_bundled(file)
    if problem := found.problem(sha256, limits):
        _log.warning("%s is not used: %s — tune this engine: resps-tune --engine-dir DIR", file, problem)
        return None
    found.expect_whole()
    return found
