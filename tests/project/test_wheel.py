"""The built wheel has every file, and its commands work in an environment without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from runtime import Decoder, SamplingParams

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("export", "policy", "runtime")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout, because a build leaves files in the source tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source]
    subprocess.run(command, check=True, timeout=300)
    (built,) = out.glob("resps-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an environment with the wheel. Other packages come from the environment that runs the tests."""
    root = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True, timeout=300)
    python = root / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True, timeout=300)
    # A .pth file adds a folder without the .pth files in it, so the checkout's editable installation has no effect there.
    (packages,) = (root / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    return root / "bin"


def ended(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program from / and without PYTHONPATH; it must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([program, *arguments], cwd="/", env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_wheel_has_every_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.split("/")[0] in PACKAGES}
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert packed == {str(file.relative_to(ROOT)) for file in files}
    for name in (
        "runtime/py.typed",
        "runtime/bench/mixed.jsonl",
        "export/training/words/seed_prompts.tsv",
        "export/training/report.html.j2",
        "export/tuning/report.html.j2",
    ):
        assert name in packed


def test_commands_come_from_the_wheel_and_have_help(installed: Path) -> None:
    statement = f"import {', '.join(PACKAGES)}; print({', '.join(f'{name}.__file__' for name in PACKAGES)})"
    assert ended(installed / "python", "-c", statement).stdout.count(str(installed.parent)) == len(PACKAGES)
    assert len(PROJECT["scripts"]) == 6
    for name in PROJECT["scripts"]:
        assert ended(installed / name, "--help").stdout.startswith(f"Usage: {name} ")
        assert PROJECT["version"] in ended(installed / name, "--version").stdout


def test_export_and_run_give_the_same_answer_as_the_checkout(
    installed: Path, tiny_engine: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    ended(installed / "resps-export", "--weights", tiny_checkpoint, "--out", tmp_path, "--name", "tiny")
    arguments = ("--threads", "1", "--max-new-tokens", "20", "the cat sat")
    done = ended(installed / "resps-run", "--engine-dir", tmp_path / "tiny", *arguments)
    with Decoder(tiny_engine, threads=1) as decoder:
        assert done.stdout == decoder.generate("the cat sat", SamplingParams(max_new_tokens=20)).text + "\n"
