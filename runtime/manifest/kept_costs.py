"""Costs that were measured on this machine: kept in the engine directory, or in the user's cache if that cannot be written."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

from policy import LatencyModel

from .typed_json import Malformed, decode

FILE_NAME = ".costs.json"
_MOST = 16  # machines, numbers of threads and of lanes in a file


@dataclass(frozen=True)
class Place:
    """Where costs hold. ``engine``: the manifest's engine_id."""

    engine: str
    machine: str
    threads: int
    lanes: int


@dataclass(frozen=True)
class _Entry:
    place: Place
    latency: LatencyModel


def cache_directory() -> Path:
    """The user's: RESPS_CACHE, or ``resps`` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RESPS_CACHE") or Path(base) / "resps")


def find(directory: Path, place: Place) -> LatencyModel | None:
    """The costs that were kept for ``place``; None if there are none, or none that can be read."""
    for file in _files(directory, place):
        for entry in _read(file):
            if entry.place == place:
                return entry.latency
    return None


def keep(directory: Path, place: Place, latency: LatencyModel) -> Path | None:
    """Keep costs for later starts. Returns the file, None if nothing can be written."""
    for file in _files(directory, place):
        others = [entry for entry in _read(file) if entry.place != place]
        text = json.dumps([dataclasses.asdict(entry) for entry in (_Entry(place, latency), *others)[:_MOST]])
        with contextlib.suppress(OSError):
            if file.parent != directory:
                file.parent.mkdir(parents=True, exist_ok=True)
            handle, scratch = tempfile.mkstemp(dir=file.parent, prefix=f"{FILE_NAME}.")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as written:
                    written.write(text)
                os.replace(scratch, file)
            except BaseException:
                os.unlink(scratch)
                raise
            return file
    return None


def _files(directory: Path, place: Place) -> tuple[Path, Path]:
    return directory / FILE_NAME, cache_directory() / "costs" / f"{place.engine}.json"


def _read(file: Path) -> list[_Entry]:
    """What a file holds; nothing if it is missing, damaged or of another version."""
    try:
        entries: tuple[_Entry, ...] = decode(tuple[_Entry, ...], json.loads(file.read_text(encoding="utf-8")), FILE_NAME)
    except (OSError, ValueError, RecursionError, Malformed):
        return []
    return [entry for entry in entries if all(0 <= each < inf for each in _numbers(dataclasses.astuple(entry.latency)))]


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, tuple):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, int | float):
        yield value
