"""resps-export --policy: a trained policy is installed in a new engine, or refused with one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from export.cli import command
from export.directory.bundled_tuning import FILE, write_bundled
from export.tuning.install import install
from policy import Watchdog
from runtime import Decoder, SamplingParams
from runtime.console import run_command
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import load_manifest
from tests.support.eagle_engines import export, write_echo, write_random_draft
from tests.support.ended import Ended
from tests.support.tunings import FAST, SLOW, a_tuning

SIZES = ("--max-context", "250", "--prefill-rows", "16")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, its draft, another draft, a tuned engine, and the same tuning bundled with the draft."""
    folder = tmp_path_factory.mktemp("given")
    write_echo(folder / "target", folder / "draft")
    write_random_draft(folder / "other")
    engine = export(folder / "target", folder / "draft", folder / "tuned", *SIZES)
    install(engine, load_manifest(engine), a_tuning(engine, {"resps": SLOW, "ltd": FAST}, policy="ltd", machine="another"))
    tuning = load_manifest(engine).tuning
    assert tuning is not None
    (folder / "bundled").mkdir()
    shutil.copyfile(folder / "draft" / "model.safetensors", folder / "bundled" / "model.safetensors")
    write_bundled(folder / "bundled", "fp32", tuning, engine)
    return folder


def forms(made: Path) -> dict[str, Path]:
    engine, bundled = made / "tuned" / "engine", made / "bundled" / "tuning" / "fp32"
    return {"engine": engine, "manifest": engine / FILE_NAME, "folder": bundled, "file": bundled / FILE}


@pytest.mark.parametrize("form", ["engine", "manifest", "folder", "file"])
def test_its_networks_are_in_the_new_engine_and_used(made: Path, tmp_path: Path, form: str) -> None:
    engine = export(made / "target", made / "draft", tmp_path, *SIZES, "--precision", "bf16", "--policy", str(forms(made)[form]))
    manifest, given = load_manifest(engine), load_manifest(made / "tuned" / "engine").tuning
    tuning = manifest.tuning
    assert tuning is not None
    assert given is not None
    assert (tuning.engine, tuning.portable, tuning.learned) == (manifest.engine_id, True, given.learned)
    assert {file.sha256 for file in tuning.files.values()} == {file.sha256 for file in given.files.values()}
    assert set(tuning.files) == {path.name for path in engine.glob("tuned-*")}
    with Decoder(engine) as decoder:
        assert isinstance(decoder.policy(), Watchdog)
        assert {"ltd", "resps"} <= set(decoder.policies)
        plain = decoder.generate([5, 6, 7], SamplingParams(max_new_tokens=40), policy="none").tokens
        for name in ("resps", "ltd"):
            assert decoder.generate([5, 6, 7], SamplingParams(max_new_tokens=40), policy=name).tokens == plain


def test_it_comes_before_the_directorys_own_and_counts_in_what_is_up_to_date(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = ("--policy", str(forms(made)["engine"]))
    engine = export(made / "target", made / "draft", tmp_path, *SIZES)
    install(engine, load_manifest(engine), a_tuning(engine, {"ltd": FAST}, policy="ltd"))
    export(made / "target", made / "draft", tmp_path, *SIZES, *policy)
    manifest = load_manifest(engine)
    assert manifest.tuning is not None
    assert set(manifest.tuning.learned) == {"resps", "ltd"}
    assert policy[1] in manifest.rebuild
    capfd.readouterr()
    export(made / "target", made / "draft", tmp_path, *SIZES, *policy)
    assert "is up to date" in capfd.readouterr().out
    export(made / "target", made / "draft", tmp_path, *SIZES)
    assert load_manifest(engine).tuning is None  # given only where it was asked for


def exported(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], policy: Path, *more: str, draft: str = "draft") -> Ended:
    line = ["--weights", str(made / "target"), *SIZES, "--out", str(tmp_path / "e"), "--policy", str(policy), *more]
    drafted = ["--draft-weights", str(made / draft)] if draft else []
    capfd.readouterr()
    return Ended(run_command(command, "resps-export", [*line, *drafted]), *capfd.readouterr())


def test_dry_run_plans_it(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = exported(made, tmp_path, capfd, forms(made)["folder"], "--dry-run", "--json")
    plan = json.loads(ended.out)
    assert plan["policy_bytes"] == sum(path.stat().st_size for path in forms(made)["folder"].glob("*.onnx")) > 0
    assert "of policy networks" in exported(made, tmp_path, capfd, forms(made)["folder"], "--dry-run").out
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("form", "more", "draft", "says"),
    [
        ("engine", (), "other", "it was tuned with another draft"),
        ("file", (), "other", "it was tuned with another draft"),
        ("engine", ("--tree-sizes", "1,8"), "draft", "it has the tree 9,2,3, the engine's trees go up to 8,16,16"),
        ("folder", ("--no-draft",), "", "--no-draft goes with none of"),
        ("folder", (), "", "--policy needs a draft"),
    ],
)
def test_what_does_not_fit_is_one_line_and_code_2(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], form: str, more: tuple[str, ...], draft: str, says: str
) -> None:
    ended = exported(made, tmp_path, capfd, forms(made)[form], *more, draft=draft)
    assert ended.code == 2
    assert says in ended.complaint
    assert not (tmp_path / "e").exists()


def with_version(folder: Path) -> None:
    (folder / FILE).write_text((folder / FILE).read_text().replace('"inputs_version": 1', '"inputs_version": 2'))


def narrower(folder: Path) -> None:
    bundled = json.loads((folder / FILE).read_text())
    bundled["tuning"]["graphs"]["resps.slow"]["inputs"]["x"]["shape"] = [1, 96]
    (folder / FILE).write_text(json.dumps(bundled))


def damaged(folder: Path) -> None:
    next(folder.glob("*.onnx")).write_bytes(b"other")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_version, "it was tuned with other policy inputs — tune this engine instead"),
        (narrower, "its network resps.slow reads 96 numbers, the engine gives 192"),
        (damaged, "is missing or changed — copy the whole folder again"),
        (lambda folder: (folder / FILE).write_text("{"), "tuning.json: Expecting property name"),
        (lambda folder: (folder / FILE).unlink(), "cannot read"),
    ],
)
def test_a_folder_that_cannot_be_used(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Callable[[Path], object], says: str
) -> None:
    folder = Path(shutil.copytree(forms(made)["folder"], tmp_path / "bundled"))
    change(folder)
    ended = exported(made, tmp_path, capfd, folder)
    assert ended.code == 2
    assert says in ended.complaint
    assert not (tmp_path / "e").exists()


def test_an_engine_that_was_not_tuned(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = export(made / "target", made / "draft", tmp_path, *SIZES)
    ended = exported(made, tmp_path, capfd, engine)
    assert ended.code == 2
    assert f"{engine} has no tuned policy — tune it first: resps-tune --engine-dir {engine}" in ended.complaint
