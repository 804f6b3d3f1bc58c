"""An export replaces only what the exporter and resps-tune wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.directory.install import move_into_place
from export.directory.owned import expect_replaceable
from export.errors import ExportError

OURS = {"schema": 3, "graphs": {}, "files": {"target.data": {}, "tokenizer.json": {}}, "tuning": {"files": {"net.onnx": {}}}}


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A directory with an old schema's manifest, and with every other kind of file that we write."""
    directory = tmp_path / "engine"
    (directory / ".tuning.partial-abc").mkdir(parents=True)
    (directory / "manifest.json").write_text(json.dumps(OURS))
    for name in ("target.data", "net.onnx", "timing.cache", ".hashed.json", ".hashed.json.x1", ".costs.json", "tuned-0123456789ab.plan"):
        (directory / name).write_text("x")
    return directory


def test_our_files_can_be_replaced(engine: Path, tmp_path: Path) -> None:
    expect_replaceable(engine)
    (tmp_path / "empty").mkdir()
    expect_replaceable(tmp_path / "empty")
    expect_replaceable(tmp_path / "nothing")


FOREIGN = {
    "empty": b"",
    "with a comment": b'// build\n{"a": 1}',
    "UTF-16": json.dumps(OURS).encode("utf-16"),
    "nested": b"[" * 100_000,
    "a link as its schema": b'{"schema": "https://example.org/x.json", "graphs": {}, "files": {}}',
    "a list of files": b'{"schema": 1, "graphs": {}, "files": []}',
    "no graphs": b'{"schema": 1, "files": {}}',
    "no number": b'{"schema": true, "graphs": {}, "files": {}}',
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_other_manifests_are_not_ours(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ExportError, match="exists and is not an engine directory — move it away"):
        expect_replaceable(tmp_path)


def test_foreign_entries_in_an_engine_are_named(engine: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for name, make in {
        "notes.txt": lambda path: path.write_text("mine"),
        "data": lambda path: path.mkdir(),
        "tokenizer.json": lambda path: path.mkdir(),  # the manifest lists a file of this name
        "tuned-notes.md": lambda path: path.write_text("mine"),
        "link": lambda path: path.symlink_to("nowhere"),
    }.items():
        make(engine / name)
        with pytest.raises(ExportError, match=f"also holds files that are not the engine's: {name} — move them away"):
            expect_replaceable(engine)
        with pytest.raises(ExportError, match=f"also holds files that are not the engine's: {name} — move them away"):
            move_into_place(scratch, engine)
        (engine / name).rename(tmp_path / name)
    move_into_place(scratch, engine)
    assert not list(engine.iterdir())


def test_a_few_foreign_entries_stand_for_many(engine: Path) -> None:
    for name in "dcba":
        (engine / name).touch()
    with pytest.raises(ExportError, match=r"engine's: a, b, c, \.\.\. — move"):
        expect_replaceable(engine)
