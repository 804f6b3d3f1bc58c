"""README.md's program runs and its model table is complete; the architecture page names every folder."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from export.checkpoints.models import MODELS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_program_runs_as_printed(demo_engine: Callable[[str], Path], tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "smollm2-135m").symlink_to(demo_engine("fp32"))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sky" in done.stdout


def test_snippets_of_the_embedding_guide_run_as_printed(tiny_engine: Path, tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    assert guide.count("\n") <= 130
    snippets = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert len(snippets) == guide.count("```python") == 4
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "smollm2-135m").symlink_to(tiny_engine)
    said = []
    for snippet in snippets:
        done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), snippet
        said.append(done.stdout)
    assert said[0].split("\n")[0] in ("eos", "length", "stop_string", "deadline")
    assert "cancelled" in said[1]
    assert "{'length': " in said[2]
    assert "the prompt is empty" in said[3]


def test_architecture_names_every_folder() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## What is where")[1].split("## ")[0]
    for package in ("policy", "runtime", "export", "scripts"):
        for folder in {file.parent for file in (ROOT / package).rglob("*.py")}:
            assert f"{folder.name}/" in tree or folder.parent.name == "serve" or folder.parent.name == "peers" or folder.name == "gpu", (
                folder
            )


def test_models_are_the_known_ones() -> None:
    table = README.split("## Models")[1].split("## ")[0]
    for name, entry in MODELS.items():
        family, _, size = name.rpartition("-")
        assert name in table or (family in table and f"-{size}" in table)
        if isinstance(entry.target, str):
            assert entry.target.split("/")[0] in table
