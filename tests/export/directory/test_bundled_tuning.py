"""Bundled tunings: every export with the draft installs its tuning, with checked networks, until resps-tune replaces it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import export as export_package
from export.directory.bundled_tuning import FILE, bundled_tuning, write_bundled
from export.directory.found_tuning import FoundTuning, adopt
from export.errors import ExportError
from export.tuning.install import install
from policy import Watchdog
from runtime import Decoder, SamplingParams
from runtime.console import run_command
from runtime.manifest.graphs import sha256_of
from runtime.manifest.load import load_manifest
from runtime.manifest.tuning_fit import PolicyLimits
from scripts.lab.bundle_tuning import main as bundle_tuning
from tests.support.eagle_engines import export, write_echo
from tests.support.tunings import FAST, SLOW, a_tuning

SIZES = ("--max-context", "250", "--prefill-rows", "16")
LIMITS = PolicyLimits(192, (64, 16, 16), None)


def bundled(draft: Path, precision: str = "fp32", limits: PolicyLimits = LIMITS) -> FoundTuning | None:
    return bundled_tuning(draft, sha256_of(draft / "model.safetensors"), precision, limits)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundled")
    write_echo(folder / "target", folder / "draft")
    engine = export(folder / "target", folder / "draft", folder / "first", *SIZES)
    install(engine, load_manifest(engine), a_tuning(engine, {"resps": SLOW, "ltd": FAST}, policy="ltd", machine="another"))
    tuning = load_manifest(engine).tuning
    assert tuning is not None
    write_bundled(folder / "draft", "fp32", tuning, engine)
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


def test_other_precisions_have_none(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert bundled(made / "draft", "int8") is None
    assert not caplog.text


def other_draft(draft: Path) -> None:
    with (draft / "model.safetensors").open("ab") as file:
        file.write(b"x")


def other_inputs(draft: Path) -> None:
    file = draft / "tuning" / "fp32" / FILE
    file.write_text(file.read_text().replace('"inputs_version": 1', '"inputs_version": 2'))


@pytest.mark.parametrize(
    ("change", "limits", "why"),
    [
        (other_draft, LIMITS, "it was tuned with another draft"),
        (other_inputs, LIMITS, "it was tuned with other policy inputs"),
        (None, PolicyLimits(96, (64, 16, 16), None), "its network resps.slow reads 192 numbers, the engine gives 96"),
        (None, PolicyLimits(192, (8, 16, 16), None), "it has the tree 9,2,3, the engine's trees go up to 8,16,16"),
        (None, PolicyLimits(192, (64, 16, 16), (1, 4, 16)), "it has trees of 5,9 nodes, the engine is built for trees of 1,4,16"),
    ],
)
def test_what_does_not_fit_is_not_used_and_says_so(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None] | None, limits: PolicyLimits, why: str
) -> None:
    draft = Path(shutil.copytree(made / "draft", tmp_path / "draft"))
    if change:
        change(draft)
    with caplog.at_level(logging.WARNING):
        assert bundled(draft, "fp32", limits) is None
    (line,) = caplog.messages
    assert line == f"{draft / 'tuning' / 'fp32' / FILE} is not used: {why} — tune this engine: resps-tune --engine-dir DIR"


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_what_comes_with_the_demo_model_is_whole_and_holds_nothing_twice(precision: str, tmp_path: Path) -> None:
    draft = Path(export_package.__file__).parent / "drafts" / "smollm2-135m"
    found = bundled(draft, precision, PolicyLimits(3 * 576, (64, 16, 16), None, rotated=precision == "int8"))
    assert found is not None
    tuning = adopt(found, "id", tmp_path, None, lambda *_: None)
    assert {graph.file for graph in tuning.graphs.values()} == set(tuning.files)
    assert len({file.sha256 for file in tuning.files.values()}) == len(tuning.files)
    assert {path.name for path in (draft / "tuning" / precision).iterdir()} == {FILE, *tuning.files}


def test_the_command_writes_the_same_again(made: Path) -> None:
    stored = {path: path.read_bytes() for path in (made / "draft" / "tuning").rglob("*.*")}
    assert stored
    assert run_command(bundle_tuning, "bundle_tuning", ["--engine-dir", str(made / "first"), "--draft", str(made / "draft")]) == 0
    assert {path: path.read_bytes() for path in (made / "draft" / "tuning").rglob("*.*")} == stored


@pytest.mark.parametrize("trouble", ["json", "keys", "changed", "outside"])
def test_broken_bundle_is_refused(made: Path, tmp_path: Path, trouble: str) -> None:
    draft = Path(shutil.copytree(made / "draft", tmp_path / "draft"))
    file = draft / "tuning" / "fp32" / FILE
    stored = json.loads(file.read_text())
    if trouble == "json":
        file.write_text("{")
    elif trouble == "keys":
        file.write_text(json.dumps({**stored, "more": 1}))
    elif trouble == "changed":
        next(file.parent.glob("*.onnx")).write_bytes(b"other")
    else:
        network, files = stored["tuning"]["graphs"]["resps.slow"], stored["tuning"]["files"]
        shutil.copyfile(file.parent / network["file"], file.parent.parent / "x")
        files["../x"], network["file"] = files[network["file"]], "../x"
        file.write_text(json.dumps(stored))
    with pytest.raises(ExportError, match=r"tuning\.json: |is missing or changed — copy the whole folder again"):
        bundled(draft)
