"""Imports go one way, and importing costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {"policy": {"policy"}, "runtime": {"policy", "runtime"}, "export": {"policy", "runtime", "export"}}
HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "tensorrt", "numpy", "tokenizers", "matplotlib", "fastapi", "uvicorn", "pydantic"}


def imported(file: Path) -> set[str]:
    """Top-level names a module imports anywhere in it, relative imports as their own package."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(file.relative_to(ROOT).parts[0] if node.level else str(node.module).split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        assert imported(file) & set(ALLOWED) <= ALLOWED[package], file


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    ["runtime", "runtime.cli", "runtime.bench.cli", "runtime.serve.cli", "export.cli", "export.tuning.cli", "export.training.cli"],
)
def test_import_is_free(module: str) -> None:
    assert not loaded_by(f"import {module}") & HEAVY


def test_decoder_needs_no_exporter() -> None:
    loaded = loaded_by("from runtime import Decoder, SamplingParams")
    assert not loaded & {"torch", "transformers", "onnx", "tensorrt", "export", "gguf", "safetensors"}


def test_every_public_name_exists() -> None:
    import runtime

    for name in runtime.__all__:
        assert getattr(runtime, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = runtime.nonsense
