"""Exporting an engine again keeps its tuning if the engine is the same, and otherwise drops it with a warning."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from export.tuning.install import install
from policy import Watchdog
from runtime import Decoder, SamplingParams
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import load_manifest
from runtime.manifest.tuning import Tuning
from tests.support.eagle_engines import export, write_echo
from tests.support.tunings import FAST, SLOW, a_tuning

SIZES = ("--max-context", "250", "--prefill-rows", "16")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_echo(folder / "target", folder / "draft")
    engine = export(folder / "target", folder / "draft", folder, *SIZES)
    install(engine, load_manifest(engine), a_tuning(engine, {"resps": SLOW, "ltd": FAST}, policy="ltd"))
    return folder


@pytest.fixture
def engine(sources: Path, tmp_path: Path) -> Path:
    """A tuned engine directory."""
    return Path(shutil.copytree(sources / "engine", tmp_path / "engine"))


def again(sources: Path, engine: Path, *more: str) -> Tuning | None:
    """Export to the same directory again; returns the tuning in the new manifest."""
    return load_manifest(export(sources / "target", sources / "draft", engine.parent, *SIZES, "--force", *more)).tuning


def test_the_same_engine_keeps_it(sources: Path, engine: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = load_manifest(engine)
    with caplog.at_level(logging.WARNING):
        assert again(sources, engine) == before.tuning
    assert not caplog.text
    assert load_manifest(engine).files == before.files
    with Decoder(engine, threads=2) as decoder:
        assert isinstance(decoder._policy, Watchdog)
        plain = decoder.generate([5, 6, 7], SamplingParams(max_new_tokens=20), policy="none").tokens
        assert decoder.generate([5, 6, 7], SamplingParams(max_new_tokens=20), policy="ltd").tokens == plain


def test_another_engine_drops_it_and_says_so(sources: Path, engine: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert again(sources, engine, "--max-context", "150") is None
    said = f"{engine}: its tuning is for another engine and is dropped — tune again: resps-tune --engine-dir {engine}"
    assert caplog.messages == [said]
    assert not list(engine.glob("tuned-*"))


@pytest.mark.parametrize("trouble", ["network", "manifest"])
def test_damage_drops_it_too(sources: Path, engine: Path, trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    if trouble == "network":
        next(engine.glob("tuned-*.onnx")).write_bytes(b"other")
    else:
        (engine / FILE_NAME).write_text(json.dumps({**json.loads((engine / FILE_NAME).read_text()), "schema": 1}))
    with caplog.at_level(logging.WARNING):
        assert again(sources, engine) is None
    (line,) = caplog.messages
    says = "is missing or changed and is dropped" if trouble == "network" else "cannot be read by this version and is dropped"
    assert says in line


def test_a_damaged_engine_that_is_made_again_keeps_it(sources: Path, engine: Path) -> None:
    before = load_manifest(engine).tuning
    (engine / "target.data").unlink()
    assert before is not None
    assert again(sources, engine) == before


def test_what_never_was_tuned_says_nothing(sources: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = export(sources / "target", sources / "draft", tmp_path, *SIZES)
    with caplog.at_level(logging.WARNING):
        assert again(sources, engine, "--max-context", "150") is None
    assert not caplog.text
