"""A tiny target with its draft, and its engine with real plans: NVIDIA's own builder needs no GPU for TensorRT-RTX."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.cli import command
from runtime.console import run_command
from runtime.manifest.load import load_manifest
from runtime.manifest.schema import Manifest
from tests.support.ended import Ended
from tests.support.tensorrt_exports import LAYERS, SIZES, Run, Source, export_to
from tests.support.tiny import write_checkpoint
from tests.support.tiny_drafts import write_draft


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("trt")
    model = write_checkpoint(root / "tiny", num_hidden_layers=LAYERS)
    write_draft(root / "draft", "specforge", model)
    return Source(root, model)


@pytest.fixture(scope="session")
def engine(source: Source) -> Path:
    """Whoever changes it changes a copy."""
    return export_to(source.root / "engines", source, "--tree-sizes", ",".join(map(str, SIZES)))


@pytest.fixture(scope="session")
def manifest(engine: Path) -> Manifest:
    return load_manifest(engine)


@pytest.fixture
def run(source: Source, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command, which is expected to fail early: a target without a draft, one tree size."""

    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        base = ["--weights", str(source.target), "--out", str(tmp_path / "e"), "--backend", "tensorrt", "--max-context", "64"]
        return Ended(run_command(command, "resps-export", [*base, "--tree-sizes", "4", *arguments]), *capfd.readouterr())

    return run
