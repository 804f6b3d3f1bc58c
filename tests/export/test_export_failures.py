"""The whole resps-export command when it fails or is killed: it leaves no incomplete engine."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

import export.build
import export.cli
import export.directory.install
import export.parity.target
from export.directory.scratch import scratch_directory
from export.graphs.weights import WeightFile
from export.text.side import TextSide
from runtime.console import progress
from runtime.errors import EngineDirError
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import load_manifest
from runtime.manifest.schema import Manifest
from tests.support.exporting import LAYERS, ROOT, Run, elsewhere, expect_engine, names_in, snapshot


def expect_no_engine(directory: Path) -> None:
    assert not (directory / FILE_NAME).exists()
    with pytest.raises(EngineDirError):
        load_manifest(directory)


class Fault:
    """Replaces the function ``original``: raises ``error`` in call number ``at``, and calls ``original`` before."""

    def __init__(self, error: BaseException, original: Callable[..., Any], at: int = 1) -> None:
        self.error, self.original, self.left = error, original, at

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.original(*arguments, **named)

    def __get__(self, instance: Any, owner: type | None = None) -> Callable[..., Any]:
        """Bind to the instance if it replaces a method."""
        return self if instance is None else lambda *arguments, **named: self(instance, *arguments, **named)


# Where a run can fail, in the order in which it gets there: owner, attribute, and the call that fails.
STAGES: Mapping[str, tuple[Any, str, int]] = {
    "tokenizer": (TextSide, "write", 1),
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
    """As the GPU build of ONNX Runtime is."""

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
        (MemoryError("too much"), 1, "there is not enough memory: too much"),
        (RuntimeError("a defect\nof ours"), 1, "internal error, RuntimeError: a defect of ours"),
    ],
)
def test_other_endings_clean_up_too(
    run: Run, engines: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr(export.cli, "progress", Fault(error, progress, 4))
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
    assert names_in(partial / "new")  # it did get somewhere
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
    expect_engine(engines / "tiny")  # loading remembers the hashes there
    before = snapshot(engines / "tiny")
    killed(patch, "--weights", str(source), "--out", str(engines), "--max-context", "64", "--force")
    (partial,) = engines.glob(".tiny.partial-*")  # with what is to be removed, or with the old engine
    assert names_in(engines) == {partial.name} | ({"tiny"} if left != "none" else set())
    if left == "none":
        expect_no_engine(engines / "tiny")
    else:
        load_manifest(engines / "tiny")
        assert (snapshot(engines / "tiny") == before) == (left == "old")
        assert "up to date" in run().out
    assert run("--force").code == 0
    expect_engine(engines / "tiny")


def test_only_partial_directories_of_dead_runs_of_this_engine_are_removed(run: Run, engines: Path) -> None:
    kept = {".other.partial-abc", ".tiny.partial-notes", "other"}
    for name in (".tiny.partial-abc", *kept):
        (engines / name).mkdir(parents=True)
        (engines / name / "file").write_text("x")
    for name in (".tiny.partial-abc", ".other.partial-abc"):
        (engines / name / "lock").touch()
    with scratch_directory(engines / "tiny") as running:
        assert run().code == 0
        assert names_in(engines) == {"tiny", running.parent.name, *kept}
    assert names_in(engines) == {"tiny", *kept}


def test_a_run_in_another_container_is_left_alone(engines: Path) -> None:
    """There this run's process id means nothing, or another process."""
    engines.mkdir()
    program = """
import os, sys, time
from pathlib import Path
from export.directory.scratch import scratch_directory
os.getpid = lambda: 999_999_999
with scratch_directory(Path(sys.argv[1])) as scratch:
    print(scratch, flush=True)
    sys.stdin.read()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", program, str(engines / "tiny")]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True, env=environment) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with scratch_directory(engines / "tiny"):
            assert theirs.is_dir()
        other.kill()
    with scratch_directory(engines / "tiny"):
        assert not theirs.parent.exists()


# Sends itself a signal when the third part of the weights is written.
SIGNALLED = """
import os, signal, sys
import export.cli
from runtime.console import run_command

number = signal.Signals[sys.argv[1]]
if sys.argv[2] == "ignored":
    signal.signal(number, signal.SIG_IGN)
export.cli.progress = lambda stage, done, total: done == 3 and os.kill(os.getpid(), number)
code = run_command(export.cli.command, "resps-export", sys.argv[3:])
assert signal.getsignal(number) == (signal.SIG_IGN if sys.argv[2] == "ignored" else signal.SIG_DFL)
sys.exit(code)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_ended_by_a_signal_cleans_up(source: Path, engines: Path, name: str, code: int) -> None:
    done = elsewhere(SIGNALLED, name, "as usual", "--weights", str(source), "--out", str(engines), "--max-context", "64")
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == f"resps-export: ended by {name}"
    assert "Traceback" not in done.stderr
    assert names_in(engines) == set()


def test_an_ignored_hangup_stays_ignored(source: Path, engines: Path) -> None:
    """As under nohup."""
    done = elsewhere(SIGNALLED, "SIGHUP", "ignored", "--weights", str(source), "--out", str(engines), "--max-context", "64")
    assert done.returncode == 0, done.stderr
    expect_engine(engines / "tiny")
