"""Runs of resps-export on a tiny checkpoint, and checks of the directories that they write."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from runtime.manifest.believed import FILE_NAME as HASHED
from runtime.manifest.kept_costs import FILE_NAME as COSTS
from runtime.manifest.load import load_manifest
from runtime.manifest.schema import Manifest
from tests.support.ended import Ended

ROOT = Path(__file__).parents[2]
FILES = {
    *("manifest.json", "target.onnx", "target.cpu.onnx", "target.lanes.onnx", "target.data", "sample.onnx"),
    *("tokenizer.json", "chat_template.jinja"),
}
LAYERS = 6
Run = Callable[..., Ended]


def snapshot(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and mtime of everything below ``directory``, to detect any change. What loading remembers there does not count."""
    found = [path for path in (directory, *directory.rglob("*")) if path.name not in (HASHED, COSTS)] if directory.exists() else []
    return {str(path): (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def names_in(directory: Path) -> set[str]:
    """Names in a directory, without what loading remembers there."""
    return {path.name for path in directory.iterdir()} - {HASHED, COSTS} if directory.exists() else set()


def files_of(precision: str) -> set[str]:
    """The files of a directory. The fused graph exists only for precisions whose attention is float32 without ordered sums, the graph with
    lanes only for those that compute in float32."""
    missing = {"fp16": {"target.cpu.onnx", "target.lanes.onnx"}, "int8": {"target.cpu.onnx"}, "int4": {"target.cpu.onnx"}}
    return FILES - missing.get(precision, set())


def expect_engine(directory: Path) -> Manifest:
    """Expects a complete directory without temporary files beside it. Returns its manifest."""
    assert names_in(directory.parent) == {directory.name}
    manifest = load_manifest(directory)
    assert names_in(directory) == files_of(manifest.precision)
    return manifest


def elsewhere(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a Python program in another process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment, check=False)
