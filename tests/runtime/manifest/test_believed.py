"""An unchanged directory is hashed once; whatever changed, was copied or cannot be trusted is hashed again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from runtime.errors import EngineDirError
from runtime.manifest import believed
from runtime.manifest.believed import FILE_NAME
from runtime.manifest.load import load_manifest


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_engine, tmp_path / "engine", ignore=shutil.ignore_patterns(f"{FILE_NAME}*")))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were hashed so far."""
    names: list[str] = []
    hash_file = believed.sha256_of

    def counted(path: Path) -> str:
        names.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(believed, "sha256_of", counted)
    return names


def change_in_place(file: Path) -> None:
    """Another byte, with size and time of modification as before."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_unchanged_directory_is_hashed_once(engine: Path, hashed: list[str]) -> None:
    files = set(load_manifest(engine).files)
    assert set(hashed) == files
    hashed.clear()
    load_manifest(engine)
    assert not hashed
    load_manifest(engine, verify=True)
    assert set(hashed) == files
    hashed.clear()
    load_manifest(engine, verify=False)
    assert not hashed


def test_a_changed_file_is_refused_even_if_size_and_time_are_the_same(engine: Path) -> None:
    load_manifest(engine)
    change_in_place(engine / "target.data")
    with pytest.raises(EngineDirError, match="changed after the export"):
        load_manifest(engine)


def test_a_file_that_was_replaced_is_refused(engine: Path) -> None:
    load_manifest(engine)
    change_in_place(Path(shutil.copy2(engine / "target.data", engine / "other")))
    os.replace(engine / "other", engine / "target.data")
    with pytest.raises(EngineDirError, match="changed after the export"):
        load_manifest(engine)


def test_a_touched_file_is_hashed_again_alone(engine: Path, hashed: list[str]) -> None:
    load_manifest(engine)
    hashed.clear()
    os.utime(engine / "target.data")
    load_manifest(engine)
    load_manifest(engine)
    assert hashed == ["target.data"]


def test_a_copy_is_hashed_again(engine: Path, hashed: list[str]) -> None:
    files = set(load_manifest(engine).files)
    hashed.clear()
    copy = Path(shutil.copytree(engine, engine.parent / "copy"))
    assert (copy / FILE_NAME).is_file()
    load_manifest(copy)
    assert set(hashed) == files


@pytest.mark.parametrize("content", ["", "[]", "{", '{"target.data": 1}', '{"target.data": ["x", 1]}'])
def test_a_damaged_memory_is_made_again(engine: Path, hashed: list[str], content: str) -> None:
    (engine / FILE_NAME).write_text(content)
    files = set(load_manifest(engine).files)
    assert set(hashed) == files
    assert set(json.loads((engine / FILE_NAME).read_text())) == files


def test_a_directory_that_cannot_be_written_is_hashed_every_time(engine: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    load_manifest(engine)
    before = (engine / FILE_NAME).read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    hashed.clear()
    files = set(load_manifest(engine).files)
    assert set(hashed) == files
    assert (engine / FILE_NAME).read_bytes() == before


def test_what_somebody_else_remembered_does_not_count(engine: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    load_manifest(engine)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    hashed.clear()
    files = set(load_manifest(engine).files)
    assert set(hashed) == files
