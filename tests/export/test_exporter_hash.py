"""The exporter's hash covers every module that can change an engine, and the prompts: an engine made by others is exported again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import export
from export.build import exporter_hash

ROOT = Path(export.__file__).parent
MODULES = sorted(file.relative_to(ROOT) for file in [*ROOT.rglob("*.py"), ROOT / "prompts.txt"])


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy") / "export"
    for module in MODULES:
        (root / module).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / module, root / module)
    return root


@pytest.fixture(scope="module")
def unchanged() -> str:
    return exporter_hash()


def test_modules_in_folders_are_among_them() -> None:
    assert {module.parts[0] for module in MODULES} >= {"checkpoints", "directory", "graphs", "parity", "tensorrt", "tuning", "training"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_change_of_any_module_changes_the_hash(copy: Path, unchanged: str, module: Path) -> None:
    """Except modules of separate commands that export no engine."""
    source = (copy / module).read_bytes()
    (copy / module).write_bytes(source + b"# changed\n")
    changed = exporter_hash(copy) != unchanged
    (copy / module).write_bytes(source)
    assert changed == (module.parts[0] not in ("doctor", "training", "tuning"))


def test_it_depends_on_nothing_but_the_modules(copy: Path, unchanged: str) -> None:
    assert exporter_hash(copy) == unchanged
