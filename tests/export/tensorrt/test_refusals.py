"""resps-export --backend tensorrt: refused options, and the choice of TensorRT and GPUs."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import export.tensorrt.gpu
import runtime.backends.cuda.tensorrt_module
from export.tensorrt.gpu import BuildGpu, choose_platform, parse_capabilities
from runtime.errors import EngineDirError
from tests.support.tensorrt_exports import Run

trt = pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tree-sizes", "1,,2"], "--tree-sizes are different whole numbers from 1 to 512, not '1,,2'"),
        (["--tree-sizes", "a"], "--tree-sizes are different whole numbers"),
        (["--tree-sizes", "0,4"], "--tree-sizes are different whole numbers"),
        (["--tree-sizes", "4,8,4"], "--tree-sizes are different whole numbers"),
        (["--tree-sizes", "-1"], "--tree-sizes are different whole numbers"),
        (["--tree-sizes", "513"], "--tree-sizes are different whole numbers"),
        (["--tree-sizes", "²"], "--tree-sizes are different whole numbers"),
        (["--compute-capability", "new"], "compute capabilities are different numbers such as 8.9,12.0, not 'new'"),
        (["--compute-capability", ""], "compute capabilities are different numbers"),
        (["--compute-capability", "8.9,8.9"], "compute capabilities are different numbers"),
        (["--compute-capability", "8.9,9.0"], "cannot build for compute capability 9.0, only for 7.5, 8.0, 8.6, 8.9, 12.0"),
        (["--backend", "onnxruntime", "--precision", "fp8"], "fp8 needs --backend tensorrt"),
        (["--backend", "onnxruntime", "--draft-precision", "fp8"], "fp8 needs --backend tensorrt"),
        (["--backend", "onnxruntime", "--compute-capability", "8.9"], "--compute-capability needs --backend tensorrt"),
        (["--backend", "openvino"], "'openvino' is not one of"),
    ],
)
def test_usage_errors(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert message in ended.complaint
    assert ended.complaint.endswith("see resps-export --help")
    assert not (tmp_path / "e").exists()


def fake(name: str, version: str) -> Any:
    return SimpleNamespace(__name__=name, __version__=version, ComputeCapability=trt.ComputeCapability)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules that can be imported, by name. A value that is an exception is raised."""
    present: dict[str, Any] = {}

    def import_module(name: str) -> Any:
        found = present.get(name, ModuleNotFoundError(name))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(importlib, "import_module", import_module)
    return present


def test_nothing_to_build_with(run: Run, tmp_path: Path, modules: dict[str, Any]) -> None:
    ended = run()
    assert ended.code == 3
    assert "tensorrt is not installed and tensorrt_rtx is not installed — pip install 'resps[tensorrt]' or pip install 'resps[rtx]'" in (
        ended.complaint
    )
    modules |= {"tensorrt_rtx": fake("tensorrt_rtx", "1.6.1.120"), "tensorrt": ImportError("libnvonnxparser.so.11: cannot open")}
    ended = run()
    assert "tensorrt cannot be loaded (libnvonnxparser.so.11: cannot open) and tensorrt_rtx 1.6.1.120 is older than 1.7" in ended.complaint
    assert not (tmp_path / "e").exists()


def test_which_tensorrt_is_taken(modules: dict[str, Any]) -> None:
    modules |= {"tensorrt": fake("tensorrt", "10.15.1"), "tensorrt_rtx": fake("tensorrt_rtx", "1.10.0")}
    assert runtime.backends.cuda.tensorrt_module.load().__name__ == "tensorrt"
    assert runtime.backends.cuda.tensorrt_module.load("tensorrt_rtx").__version__ == "1.10.0"
    modules["tensorrt"] = fake("tensorrt", "10.9.0")
    assert runtime.backends.cuda.tensorrt_module.load().__name__ == "tensorrt_rtx"
    with pytest.raises(EngineDirError, match=r"tensorrt 10\.9\.0 is older than 10\.15 — pip install --upgrade 'resps\[tensorrt\]'"):
        runtime.backends.cuda.tensorrt_module.load("tensorrt")
    with pytest.raises(EngineDirError, match="there is no TensorRT called 'onnx'"):
        runtime.backends.cuda.tensorrt_module.load("onnx")


def test_tensorrt_itself_needs_a_gpu(run: Run, modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    modules["tensorrt"] = fake("tensorrt", "11.4.0")
    monkeypatch.setattr(export.tensorrt.gpu, "find_gpu", lambda: None)
    ended = run()
    assert ended.code == 1
    assert "tensorrt builds engines only on a machine with a GPU, and this one has none — export on the machine" in ended.complaint
    assert "--compute-capability needs tensorrt_rtx" in run("--compute-capability", "8.9").complaint
    monkeypatch.setattr(export.tensorrt.gpu, "find_gpu", lambda: BuildGpu("NVIDIA H200", "9.0"))
    platform = choose_platform(())
    assert (platform.capabilities, platform.rtx, platform.gpu) == (("9.0",), False, BuildGpu("NVIDIA H200", "9.0"))


def test_gpu_that_is_here_is_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.tensorrt.gpu, "find_gpu", lambda: BuildGpu("NVIDIA L4", "8.9"))
    assert choose_platform(()).capabilities == ("8.9",)
    assert choose_platform(("12.0",)).capabilities == ("12.0",)
    monkeypatch.setattr(export.tensorrt.gpu, "find_gpu", lambda: None)
    assert choose_platform(()).capabilities == ("8.9", "12.0")
    assert parse_capabilities("12.0, 8.9") == ("8.9", "12.0")
