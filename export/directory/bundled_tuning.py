"""A tuning that comes with a draft: its folder tuning/PRECISION holds what resps-tune found for this pair of models on some machine.

Which trees pay depends on the machine too, so it is a start: portable, under the watchdog, until resps-tune replaces it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

from runtime.manifest.graphs import File, sha256_of
from runtime.manifest.tuning import Tuning
from runtime.manifest.typed_json import Malformed, decode

from ..errors import ExportError

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


def take_out(draft: Path, precision: str, engine_id: str, scratch: Path) -> Tuning | None:
    """The tuning for a new engine, its networks copied to ``scratch``; None where there is none, or it is another draft's, which is said.
    Raises ExportError for one that cannot be read."""
    folder = draft / FOLDER / precision
    if not (folder / FILE).is_file():
        return None
    try:
        boxed: Boxed = decode(Boxed, json.loads((folder / FILE).read_text(encoding="utf-8")), "tuning")
    except (OSError, ValueError, Malformed) as problem:
        raise ExportError(
            f"cannot read {folder / FILE}: {problem} — remove the folder, or make it again with scripts/lab/bundle_tuning.py"
        ) from None
    if not (draft / WEIGHTS).is_file() or boxed.draft != sha256_of(draft / WEIGHTS):
        _log.warning("%s is about another draft: not used — make it again with scripts/lab/bundle_tuning.py", folder)
        return None
    for name, expected in boxed.tuning.files.items():
        if not is_whole(folder, name, expected):
            raise ExportError(f"{folder / name} is missing or changed — make the folder again with scripts/lab/bundle_tuning.py")
        shutil.copyfile(folder / name, scratch / name)
    return dataclasses.replace(boxed.tuning, engine=engine_id)


def is_whole(folder: Path, name: str, expected: File) -> bool:
    """Whether ``folder`` itself has that file, unchanged."""
    path = folder / name
    return name == path.name and path.is_file() and File(sha256_of(path), path.stat().st_size) == expected
