"""A tiny target with its draft, and their engine with real plans, which TensorRT-RTX builds without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.cli import command
from runtime.console import run_command
from runtime.manifest.load import load_manifest
from runtime.manifest.schema import Manifest
from tests.support.ended import Ended
from tests.support.tensorrt_exports import LANES, LAYERS, SIZES, Run, TinyModels, export_to
from tests.support.tiny import write_checkpoint
from tests.support.tiny_drafts import write_draft


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    root = tmp_path_factory.mktemp("trt")
    model = write_checkpoint(root / "tiny", num_hidden_layers=LAYERS)
    write_draft(root / "draft", "specforge", model)
    return TinyModels(root, model)


@pytest.fixture(scope="session")
def engine(source: TinyModels) -> Path:
    """The exported engine. A test that changes it must copy it first."""
    return export_to(source.root / "engines", source, "--tree-sizes", ",".join(map(str, SIZES)))


@pytest.fixture(scope="session")
def lanes_engine(source: TinyModels) -> Path:
    """The exported engine with plans for several lanes. A test that changes it must copy it first."""
    return export_to(source.root / "lanes", source, "--tree-sizes", ",".join(map(str, SIZES)), "--lanes", str(LANES))


@pytest.fixture(scope="session")
def manifest(engine: Path) -> Manifest:
    return load_manifest(engine)


@pytest.fixture
def run(source: TinyModels, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command without a draft and with one tree size; for calls that fail early."""

    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        base = ["--weights", str(source.target), "--out", str(tmp_path / "e"), "--backend", "tensorrt", "--max-context", "64"]
        return Ended(run_command(command, "resps-export", [*base, "--tree-sizes", "4", *arguments]), *capfd.readouterr())

    return run
