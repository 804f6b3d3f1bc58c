"""The whole resps-export command when it fails or is killed: nothing is left that is no engine."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

import export.build
import export.cli
import export.directory.install
import export.parity.target
from export.checkpoints.models import MODELS, ModelEntry
from export.cli import command
from export.errors import CheckpointError
from export.graphs.weights import WeightFile
from runtime.console import run_command
from runtime.errors import EngineDirError
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import load_manifest
from runtime.manifest.schema import Manifest
from tests.support.ended import Ended
from tests.support.exporting import LAYERS, Run, elsewhere, expect_engine, names_in, snapshot


def expect_no_engine(directory: Path) -> None:
    assert not (directory / FILE_NAME).exists()
    with pytest.raises(EngineDirError):
        load_manifest(directory)


class Fault:
    """Raises ``error`` when called for the ``at``-th time; until then does what it stands for."""

    def __init__(self, error: BaseException, original: Callable[..., Any], at: int = 1) -> None:
        self.error, self.original, self.left = error, original, at

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.original(*arguments, **named)

    def __get__(self, instance: Any, owner: type | None = None) -> Callable[..., Any]:
        """As a method, when it stands for one."""
        return self if instance is None else lambda *arguments, **named: self(instance, *arguments, **named)


# Where a run can fail, in the order in which it gets there: owner, attribute, and the call that fails.
STAGES: Mapping[str, tuple[Any, str, int]] = {
    "tokenizer": (export.build, "_tokenizer_files", 1),
    "first bytes": (WeightFile, "_append", 1),
    "weights": (WeightFile, "_append", 20),
    "layer": (export.cli, "progress", 3),
    "last layer": (export.cli, "progress", LAYERS),
    "target graph": (onnx, "save", 1),
    "sample graph": (onnx, "save", 2),
    "piece of the check": (onnx, "save", 4),
    "reference": (export.parity.target, "reference_logits", 1),
    "checked": (export.cli, "progress", LAYERS + 2),
    "hash": (export.build, "sha256_of", 2),
    "manifest": (Manifest, "to_json", 1),
    "sync": (os, "fsync", 2),
    "first rename": (Path, "rename", 1),
    "last rename": (Path, "rename", 2),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("existing", [False, True], ids=["fresh", "existing"])
def test_failure_at_any_stage_leaves_what_was_there(
    run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch, stage: str, existing: bool
) -> None:
    owner, name, at = STAGES[stage]
    if stage == "last rename" and not existing:
        at = 1  # there is nothing to move away first
    if existing:
        assert run().code == 0
    before = {key: value for key, value in snapshot(engines).items() if key != str(engines)}
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        fault = Fault(full, getattr(owner, name), at)
        patch.setattr(owner, name, fault)
        if "rename" in stage:  # as on a system that cannot exchange two directories in one step
            patch.setattr(export.directory.install, "_exchange", lambda first, second: False)
        ended = run("--force")
    assert fault.left <= 0
    assert ended.code == 1
    assert "No space left on device" in ended.complaint
    assert ended.out == ""
    assert {key: value for key, value in snapshot(engines).items() if key != str(engines)} == before
    if existing:
        expect_engine(engines / "tiny")
        assert "up to date" in run().out
    else:
        expect_no_engine(engines / "tiny")
        assert run().code == 0
        expect_engine(engines / "tiny")


def test_onnx_runtime_installed_under_another_name(run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its GPU build is."""

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(export.build, "version", version)
    assert run().code == 0
    assert expect_engine(engines / "tiny").built_with["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("too much"), 1, "MemoryError: too much"),
        (RuntimeError("a defect\nof ours"), 1, "internal error, RuntimeError: a defect of ours"),
    ],
)
def test_other_endings_clean_up_too(
    run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr(export.cli, "progress", Fault(error, export.cli.progress, 4))
    ended = run()
    assert ended.code == code
    assert ended.err.splitlines()[-1].startswith(f"resps-export: {message}")
    assert names_in(engines) == set()


# Run in another process, which dies on the spot: no clean-up of any kind.
KILLED = """
import os, signal, sys
from pathlib import Path
import export.build, export.cli
from runtime.console import run_command

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

rename, seen = Path.rename, []
def second_rename(self, target):
    seen.append(self)
    return rename(self, target) if len(seen) == 1 else die()

{patch}
run_command(export.cli.command, "resps-export", sys.argv[1:])
"""
KILLS = {
    "writing weights": "export.cli.progress = lambda stage, done, total: done == 3 and die()",
    "checking": "export.build.check_target = die",
    "before the manifest": "export.build.Manifest.to_json = die",
    "before the move": "os.fsync = die",
}


def killed(patch: str, *arguments: str) -> None:
    assert elsewhere(KILLED.format(patch=patch), *arguments).returncode == -signal.SIGKILL


@pytest.mark.parametrize("moment", KILLS)
def test_killed_run_leaves_no_engine_and_the_next_one_cleans_up(run: Run, source: Path, engines: Path, moment: str) -> None:
    killed(KILLS[moment], "--weights", str(source), "--out", str(engines), "--max-context", "64")
    (partial,) = engines.iterdir()
    assert partial.name.startswith(".tiny.partial-")
    assert names_in(partial)  # it did get somewhere
    expect_no_engine(engines / "tiny")
    assert run().code == 0
    expect_engine(engines / "tiny")


@pytest.mark.parametrize(
    ("patch", "left"),
    [
        (KILLS["before the move"], "old"),
        ("export.directory.install.shutil.rmtree = die", "new"),
        ("export.directory.install._exchange = lambda *_: False; Path.rename = second_rename", "none"),
    ],
    ids=["before the move", "after the exchange", "between two renames where nothing can be exchanged"],
)
def test_killed_rebuild_leaves_a_whole_engine_or_none(run: Run, source: Path, engines: Path, patch: str, left: str) -> None:
    assert run().code == 0
    before = snapshot(engines / "tiny")
    killed(patch, "--weights", str(source), "--out", str(engines), "--max-context", "64", "--force")
    assert len(names_in(engines)) == 2  # the engine or its stashed form, and what is to be removed
    if left == "none":
        expect_no_engine(engines / "tiny")
    else:
        load_manifest(engines / "tiny")
        assert (snapshot(engines / "tiny") == before) == (left == "old")
        assert "up to date" in run().out
    assert run("--force").code == 0
    expect_engine(engines / "tiny")


def test_only_partial_directories_of_dead_runs_of_this_engine_are_removed(run: Run, engines: Path) -> None:
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    dead = f".tiny.partial-{finished.pid}-abc"
    kept = {f".tiny.partial-{os.getppid()}-abc", f".other.partial-{finished.pid}-abc", ".tiny.partial-notes", "other"}
    for name in (dead, *kept):
        (engines / name).mkdir(parents=True)
        (engines / name / "file").write_text("x")
    assert run().code == 0
    assert names_in(engines) == {"tiny", *kept}


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {"manifest.json": '{"name": "a web page"}', "icon.png": "x"}])
def test_directory_that_is_no_engine_is_not_overwritten(run: Run, engines: Path, content: Mapping[str, str]) -> None:
    (engines / "tiny").mkdir(parents=True)
    for name, text in content.items():
        (engines / "tiny" / name).write_text(text)
    before = snapshot(engines)
    for arguments in ([], ["--force"]):
        ended = run(*arguments)
        assert ended.code == 1
        assert "exists and is no engine directory — move it away" in ended.complaint
    assert snapshot(engines) == before


def test_file_in_the_way_is_not_overwritten_but_an_empty_directory_is_used(run: Run, engines: Path) -> None:
    engines.mkdir()
    (engines / "tiny").write_text("mine")
    assert "exists and is no engine directory" in run("--force").complaint
    assert (engines / "tiny").read_text() == "mine"
    (engines / "tiny").unlink()
    (engines / "tiny").mkdir()
    assert run().code == 0
    expect_engine(engines / "tiny")


def test_too_small_a_disk_is_noticed_first(run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10 << 30, (10 << 30) - (3 << 20), 3 << 20))
    ended = run()
    assert ended.code == 1
    assert f"{engines} has 3 MiB free, the export needs" in ended.complaint
    assert names_in(engines) == set()


def test_unknown_model_lists_the_known_ones(run: Run, engines: Path) -> None:
    ended = run("--model", "llama-9000")
    assert ended.code == 2
    assert "unknown model 'llama-9000' — choose from " in ended.complaint
    assert all(name in ended.complaint for name in MODELS)
    assert not engines.exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["--model"], ["--weights", "x", "--precision", "int3"], ["--weights", "x", "--max-context", "1"], ["--weights", "x", "--depth"]],
)
def test_usage_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code = run_command(command, "resps-export", arguments)
    ended = Ended(code, *capfd.readouterr())
    assert (ended.code, ended.out) == (2, "")
    assert ended.complaint.endswith("see resps-export --help")
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("name", ["../tiny", "a/b", ".hidden", ".."])
def test_names_that_lead_elsewhere_are_refused(run: Run, engines: Path, name: str) -> None:
    ended = run("--name", name)
    assert ended.code == 2
    assert "--name must be a plain directory name" in ended.complaint
    assert not engines.exists()


def test_hub_out_of_reach(run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    ended = run("--weights", "owner/model")
    assert ended.code == 1
    assert "cannot download owner/model from the hub: no route — " in ended.complaint
    assert not engines.exists()


def test_model_name_goes_to_its_repository(source: Path, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, **_: Any) -> str:
        asked.append(repository)
        return str(source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setitem(MODELS, "small", ModelEntry("owner/small", None))
    assert run_command(command, "resps-export", ["--model", "small", "--out", str(engines)]) == 0
    assert asked == ["owner/small"]
    assert load_manifest(engines / "small").model == "small"


def test_unsupported_architecture(run: Run, source: Path, engines: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    for change, message in (({"model_type": "gemma3"}, "architecture 'gemma3'"), ({"mlp_bias": True}, "only SwiGLU without bias")):
        (source / "config.json").write_text(json.dumps({**config, **change}))
        for arguments in ([], ["--dry-run"]):
            ended = run(*arguments)
            assert ended.code == 1
            assert message in ended.complaint
    assert not engines.exists()


def test_incomplete_checkpoint(run: Run, source: Path, engines: Path) -> None:
    for name, message in (("tokenizer.json", "has no tokenizer.json — "), ("model.safetensors", "holds no weights")):
        (source / name).unlink()
        ended = run()
        assert ended.code == CheckpointError.exit_code
        assert message in ended.complaint
        assert names_in(engines) == set()


@pytest.mark.parametrize(("precision", "noise"), [("fp32", 0.01), ("int4", 10.0)])
def test_export_that_differs_from_its_checkpoint_is_thrown_away(
    run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch, precision: str, noise: float
) -> None:
    original = export.parity.target.reference_logits
    random = np.random.default_rng(0)

    def disturbed(*arguments: Any) -> np.ndarray:
        logits = original(*arguments)
        return logits + noise * random.standard_normal(logits.shape, np.float32)

    monkeypatch.setattr(export.parity.target, "reference_logits", disturbed)
    ended = run("--precision", precision)
    assert ended.code == 1
    assert "the exported target differs from the checkpoint: max |logit difference|" in ended.complaint
    assert names_in(engines) == set()


def test_weights_too_large_for_half_precision_are_noticed(run: Run, source: Path, engines: Path) -> None:
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.mlp.down_proj.weight"] = tensors["model.layers.2.mlp.down_proj.weight"] * np.float32(1e6)
    save_file(tensors, file, metadata={"format": "pt"})
    ended = run("--precision", "fp16")
    assert ended.code == 1
    assert "logits that are not finite in fp16 — choose another --precision" in ended.complaint
    assert names_in(engines) == set()
    assert run("--precision", "bf16").code == 0
