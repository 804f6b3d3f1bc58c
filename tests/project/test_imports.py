"""Imports go down the layers only, importing is cheap, and files and functions are short."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {"policy": {"policy"}, "runtime": {"policy", "runtime"}, "export": {"policy", "runtime", "export"}}
UPWARDS = {"runtime/bench/cli.py": {"export"}}  # resps-bench --doctor reads checkpoints; nothing else in runtime may
HEAVY = {
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "numpy",
    "tokenizers",
    "llguidance",
    "matplotlib",
    "starlette",
    "uvicorn",
    "pydantic",
}


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
        assert imported(file) & set(ALLOWED) <= ALLOWED[package] | UPWARDS.get(file.relative_to(ROOT).as_posix(), set()), file


# From the bottom up: a module imports from its own folder or from a lower layer. A folder is one unit; so is a module beside folders.
LAYERS = {
    "policy": [
        ["spec"],
        ["base", "inputs"],
        ["latency"],
        ["correction"],
        ["backoff", "fixed", "cost_model", "lookup", "persistence", "resps", "table"],
        ["ltd", "watchdog", "forest", "guard"],
        ["__init__"],
    ],
    "runtime": [
        ["errors", "sampling_params", "standard_streams", "text_files"],
        ["manifest", "native_calls"],
        ["text", "backends"],
        ["decoding"],
        ["drafters"],
        ["constraints"],
        ["tool_calls"],
        ["policies"],
        ["models", "engine"],
        ["request"],
        ["stream"],
        ["lanes"],
        ["arguments", "start"],
        ["decoder"],
        ["__init__"],
        ["console"],
        ["options"],
        ["sampling_options"],
        ["cli", "bench", "serve"],
    ],
    "runtime/backends": [["page_pool"], ["lane_cache"], ["base", "spanned_cache", "ort_process"], ["cpu", "cuda"], ["open"]],
    "export": [
        ["errors", "hadamard"],
        ["checkpoints"],
        ["graphs", "text", "rotation"],
        ["graph_files", "parity", "tensorrt"],
        ["directory", "calibration", "asked"],
        ["draft_build"],
        ["plan"],
        ["build"],
        ["cli"],
        ["tuning", "training", "doctor"],
    ],
    "export/tuning": [
        ["errors", "evidence"],
        ["prompts"],
        ["replay"],
        ["load"],
        ["learning"],
        ["tune"],
        ["outcome"],
        ["install", "report"],
        ["cli"],
    ],
}
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in ALLOWED
    for file in sorted((ROOT / package).rglob("*.py"))
}


def imports_of(name: str) -> set[str]:
    """Modules of ours that a module imports anywhere in it."""
    file, found = MODULES[name], set()
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = (
                [*package[: len(package) - node.level + 1], *(node.module or "").split(".")] if node.level else str(node.module).split(".")
            )
            start = ".".join(part for part in base if part)
            found.update(f"{start}.{alias.name}" if f"{start}.{alias.name}" in MODULES else start for alias in node.names)
    return found & MODULES.keys()


@pytest.mark.parametrize("folder", LAYERS)
def test_layers_are_imported_downwards(folder: str) -> None:
    prefix, heights = folder.replace("/", ".") + ".", {name: height for height, layer in enumerate(LAYERS[folder]) for name in layer}

    def unit(module: str) -> str:
        return module.removeprefix(prefix).split(".")[0]

    inside = [module for module in MODULES if module.startswith(prefix)]
    assert {unit(module) for module in inside} <= heights.keys()
    for module in inside:
        for other in imports_of(module):
            if other.startswith(prefix) and unit(other) != unit(module):
                assert heights[unit(other)] < heights[unit(module)], f"{module} imports {other}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in imports_of(module):
                visit(other, [*path, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])


@pytest.mark.parametrize("folder", sorted({file.parent for top in (*ALLOWED, "scripts") for file in (ROOT / top).rglob("*.py")}), ids=str)
def test_folders_read_like_a_table_of_contents(folder: Path) -> None:
    assert len([file for file in folder.glob("*.py") if file.name != "__init__.py"]) <= 16


FILES = sorted(file for top in (*ALLOWED, "scripts", "tests") for file in (ROOT / top).rglob("*.py"))


def test_files_and_functions_are_short() -> None:
    for file in FILES:
        source = file.read_text(encoding="utf-8")
        assert source.count("\n") <= 300, file
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{file}: {node.name}"


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
