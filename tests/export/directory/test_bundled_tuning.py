"""A draft's own tuning: every export of the pair has it, with networks that are checked, until something else is tuned."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest

import export as export_package
from export.directory.bundled_tuning import FILE, put_in, take_out
from export.errors import ExportError
from export.tuning.install import install
from policy import Watchdog
from runtime import Decoder, SamplingParams
from runtime.console import run_command
from runtime.manifest.load import load_manifest
from scripts.lab.bundle_tuning import main as box_tuning
from tests.support.eagle_engines import export, write_echo
from tests.support.tunings import FAST, SLOW, a_tuning

SIZES = ("--max-context", "250", "--prefill-rows", "16")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boxed")
    write_echo(folder / "target", folder / "draft")
    engine = export(folder / "target", folder / "draft", folder / "first", *SIZES)
    install(engine, load_manifest(engine), a_tuning(engine, {"resps": SLOW, "ltd": FAST}, policy="ltd", machine="another"))
    tuning = load_manifest(engine).tuning
    assert tuning is not None
    put_in(folder / "draft", "fp32", tuning, engine)
    return folder


def test_exports_of_the_pair_start_with_it(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = export(made / "target", made / "draft", made / "second", *SIZES)
    manifest = load_manifest(engine)
    assert manifest.tuning is not None
    assert manifest.tuning.portable
    assert manifest.tuning.engine == manifest.engine_id
    with caplog.at_level(logging.WARNING), Decoder(engine, threads=1) as decoder:
        assert isinstance(decoder._policy, Watchdog)
        plain = decoder.generate([5, 6, 7], SamplingParams(max_new_tokens=40), policy="none").tokens
        assert decoder.generate([5, 6, 7], SamplingParams(max_new_tokens=40)).tokens == plain
        assert decoder.generate([5, 6, 7], SamplingParams(max_new_tokens=40), policy="resps").tokens == plain
    assert not caplog.text
    install(engine, manifest, a_tuning(engine))  # what is tuned here replaces it
    again = load_manifest(engine).tuning
    assert again is not None
    assert not again.portable
    assert not list(engine.glob("tuned-*"))


def test_other_precisions_have_none(made: Path, tmp_path: Path) -> None:
    assert take_out(made / "draft", "int8", "id", tmp_path) is None


def test_another_drafts_tuning_is_not_used_and_says_so(made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draft = Path(shutil.copytree(made / "draft", tmp_path / "draft"))
    with (draft / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with caplog.at_level(logging.WARNING):
        assert take_out(draft, "fp32", "id", tmp_path) is None
    assert "is about another draft: not used — make it again" in caplog.text


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_what_comes_with_the_demo_model_is_whole_and_holds_nothing_twice(precision: str, tmp_path: Path) -> None:
    draft = Path(export_package.__file__).parent / "drafts" / "smollm2-135m"
    tuning = take_out(draft, precision, "id", tmp_path)
    assert tuning is not None
    assert {graph.file for graph in tuning.graphs.values()} == set(tuning.files)
    assert len({file.sha256 for file in tuning.files.values()}) == len(tuning.files)
    assert {path.name for path in (draft / "tuning" / precision).iterdir()} == {FILE, *tuning.files}


def test_the_command_writes_the_same_again(made: Path) -> None:
    boxed = {path: path.read_bytes() for path in (made / "draft" / "tuning").rglob("*.*")}
    assert boxed
    assert run_command(box_tuning, "box_tuning", ["--engine-dir", str(made / "first"), "--draft", str(made / "draft")]) == 0
    assert {path: path.read_bytes() for path in (made / "draft" / "tuning").rglob("*.*")} == boxed


@pytest.mark.parametrize("trouble", ["json", "keys", "changed", "outside"])
def test_box_that_is_broken_is_refused(made: Path, tmp_path: Path, trouble: str) -> None:
    draft = Path(shutil.copytree(made / "draft", tmp_path / "draft"))
    file = draft / "tuning" / "fp32" / FILE
    boxed = json.loads(file.read_text())
    if trouble == "json":
        file.write_text("{")
    elif trouble == "keys":
        file.write_text(json.dumps({**boxed, "more": 1}))
    elif trouble == "changed":
        next(file.parent.glob("*.onnx")).write_bytes(b"other")
    else:
        boxed["tuning"]["files"]["../x"] = dataclasses.asdict(load_manifest(made / "first" / "engine").files["tokenizer.json"])
        file.write_text(json.dumps(boxed))
    with pytest.raises(ExportError, match=r"tuning\.json: |is missing or changed — make the folder again"):
        take_out(draft, "fp32", "id", tmp_path)
