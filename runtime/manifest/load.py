"""Finds an engine directory, reads its manifest and checks it."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import EngineDirError
from .check import check_contract, check_files
from .graphs import FILE_NAME
from .schema import SCHEMA, Manifest
from .typed_json import Malformed, decode


def find_engine_dir(path: Path) -> Path:
    """``path`` itself, or the only engine directory directly inside it. Raises EngineDirError."""
    if not path.is_dir():
        raise EngineDirError(f"there is no engine directory {path} — export one: resps-export --model smollm2-135m")
    if (path / FILE_NAME).is_file():
        return path
    found = sorted(child for child in path.iterdir() if not child.name.startswith(".") and (child / FILE_NAME).is_file())
    if len(found) == 1:
        return found[0]
    if found:
        raise EngineDirError(f"{path} holds several engine directories — choose one: {', '.join(map(str, found))}")
    raise EngineDirError(f"{path} has no {FILE_NAME}: it is not a finished engine directory — export one: resps-export --model NAME")


def load_manifest(directory: Path, *, verify: bool | None = None, backend: str | None = None, tuned: bool = True) -> Manifest:
    """Read the manifest and check the directory: every file must be there, and every file that ``backend`` reads must have its hash.

    ``verify``: whether to hash them [default: those that changed since they were hashed]. ``backend``: [default: the one it was exported
    for]. Without ``tuned`` its tuning is left out. Raises EngineDirError.
    """
    manifest = read_manifest(directory, tuned)
    check_files(directory, manifest, verify, backend or manifest.backend)
    return manifest


def read_manifest(directory: Path, tuned: bool = True) -> Manifest:
    """Read manifest.json and check its schema, its keys and their consistency, but no other file. Without ``tuned`` its tuning is left out,
    whatever it holds. Raises EngineDirError."""
    file = directory / FILE_NAME
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EngineDirError(f"cannot read {file}: {error} — export again: resps-export --model NAME --force") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise EngineDirError(f"{file} has schema {schema!r}, this version reads {SCHEMA} — export again: resps-export --model NAME --force")
    try:
        manifest: Manifest = decode(Manifest, data if tuned else {**data, "tuning": None}, "manifest")
        if manifest.tuning and not manifest.tuning.reads_known_inputs:
            raise EngineDirError(f"{directory} was tuned with other policy inputs — tune again: resps-tune --engine-dir {directory}")
        check_contract(manifest)
    except Malformed as problem:
        raise EngineDirError(f"{file} is malformed: {problem} — export again: resps-export --model NAME --force") from None
    return manifest
