"""A tuning that comes with a draft: its folder tuning/PRECISION holds what resps-tune found for this pair of models on some machine.

The best trees depend on the machine too, so this is a start: any machine may use it, behind the watchdog, until resps-tune replaces it.
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
class Boxed:
    """``draft``: hash of the weights that it was tuned with."""

    draft: str
    tuning: Tuning


def put_in(draft: Path, precision: str, tuning: Tuning, engine_dir: Path) -> Path:
    """Write an engine directory's tuning into the folder of its draft; returns where."""
    folder = draft / FOLDER / precision
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in tuning.files:
        shutil.copyfile(engine_dir / name, folder / name)
    boxed = Boxed(sha256_of(draft / WEIGHTS), dataclasses.replace(tuning, portable=True))
    (folder / FILE).write_text(json.dumps(dataclasses.asdict(boxed), indent=1) + "\n", encoding="utf-8")
    return folder


def read_bundled(file: Path) -> FoundTuning:
    """Raises ExportError for a file that cannot be read."""
    try:
        boxed: Boxed = decode(Boxed, json.loads(file.read_text(encoding="utf-8")), "tuning")
        check_tuning(boxed.tuning, plans=False)
    except (OSError, ValueError, Malformed) as problem:
        raise ExportError(
            f"cannot read {file}: {problem} — remove the folder, or make it again with scripts/lab/bundle_tuning.py"
        ) from None
    return FoundTuning(file, boxed.tuning, boxed.draft)


def bundled_tuning(draft: Path, sha256: str, precision: str, limits: PolicyLimits) -> FoundTuning | None:
    """The tuning that comes with the draft in that folder, whose weights have that hash. None if absent, or if it cannot be used here (logs
    a warning). Raises ExportError for one that cannot be read."""
    file = draft / FOLDER / precision / FILE
    if not file.is_file():
        return None
    found = read_bundled(file)
    if problem := found.problem(sha256, limits):
        _log.warning("%s is not used: %s — tune this engine: resps-tune --engine-dir DIR", file, problem)
        return None
    found.expect_whole()
    return found
