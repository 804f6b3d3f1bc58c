"""Which engine and which tuning an application serves: a replica whose directory differs must not answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

from ...errors import EngineDirError
from ...manifest.load import find_engine_dir, read_manifest
from ...manifest.schema import Manifest

UNTUNED = "none"


@dataclass(frozen=True)
class Pins:
    """Hashes of an engine's files and of its tuning, as /version shows them. ``tuning``: UNTUNED without one."""

    engine: str
    tuning: str


def pins_of(manifest: Manifest) -> Pins:
    """What the directory with this manifest holds."""
    return Pins(manifest.engine_id, manifest.tuning_id or UNTUNED)


def pinned(directory: Path, engine: str | None, tuning: str | None) -> Pins:
    """The hashes that were given, and of those that were not what the directory on this machine holds. Raises EngineDirError."""
    if engine is not None and tuning is not None:
        return Pins(engine, tuning)
    here = pins_of(read_manifest(find_engine_dir(directory)))
    return Pins(engine or here.engine, tuning or here.tuning)


def expect_pinned(directory: Path, pins: Pins) -> None:
    """Raises EngineDirError if the directory on this machine holds another engine or tuning."""
    here = pins_of(read_manifest(find_engine_dir(directory)))
    for what, found, wanted in (("engine", here.engine, pins.engine), ("tuning", here.tuning, pins.tuning)):
        if found != wanted:
            raise EngineDirError(
                f"{directory} on {gethostname()} has the {what} {found}, the application serves {wanted} — "
                f"copy the directory to every machine again, or deploy with {what}={found}"
            )
