"""The GPU and the installed versions, and whether TensorRT runs here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.cuda.driver import Cuda
from runtime.backends.cuda.memory import DeviceMemory
from runtime.backends.cuda.tensorrt import Scratch, TrtEngine, read_plan
from runtime.backends.cuda.tensorrt_module import load, logger
from runtime.errors import EngineDirError
from runtime.manifest.graphs import Graph, Tensor

PACKAGES = ("tensorrt", "tensorrt-rtx", "onnxruntime-gpu", "onnxruntime", "torch", "transformers", "cuda-bindings", "onnx")


def environment() -> dict[str, Any]:
    """GPU, driver (1000 x major + 10 x minor), free memory in MiB, versions."""
    cuda = Cuda()
    try:
        gpu = cuda.gpu()
        driver = cuda._api.cudaDriverGetVersion()[1]
        properties = {"gpu": gpu.name, "compute_capability": gpu.compute_capability, "memory_mib": gpu.memory >> 20}
        return {
            **properties,
            "free_mib": cuda.free_memory() >> 20,
            "driver": int(driver),
            "packages": _versions(),
            "copy_tb_s": bandwidth(cuda),
        }
    finally:
        cuda.close()


def bandwidth(cuda: Cuda, size: int = 1 << 30, times: int = 20) -> float:
    """Memory bandwidth in TB/s: bytes read and written by device copies."""
    first, second = cuda.allocate(size), cuda.allocate(size)
    try:
        cuda.copy(second, first, size)
        start = cuda.record_event()
        for _ in range(times):
            cuda.copy(second, first, size)
        return round(2 * size * times / cuda.elapsed_ms(start, cuda.record_event()) / 1e9, 2)
    finally:
        cuda.synchronize()
        cuda.free(first)
        cuda.free(second)


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def runs_plans(folder: Path) -> dict[str, Any]:
    """For both forms of TensorRT: does a plan built for this GPU run and give ONNX Runtime's result? Does one built without it?"""
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for flavour in ("tensorrt", "tensorrt_rtx"):
        for target in ("this GPU", "8.9,12.0") if flavour == "tensorrt_rtx" else ("this GPU",):
            try:
                results[f"{flavour} for {target}"] = _runs(folder, flavour, None if target == "this GPU" else target)
            except Exception as error:  # any failure is the answer
                results[f"{flavour} for {target}"] = {"runs": False, "error": f"{type(error).__name__}: {error}"}
    return results


def _runs(folder: Path, flavour: str, capabilities: str | None) -> dict[str, Any]:
    import onnxruntime

    from export.graphs.sample import build_sample
    from export.tensorrt.builder import build_plan
    from export.tensorrt.gpu import Platform, find_gpu, parse_capabilities

    vocab = 1000
    (folder / "sample.onnx").write_bytes(build_sample(vocab).SerializeToString())
    graph = _sample_graph(vocab)
    gpu = find_gpu()
    if gpu is None:
        raise EngineDirError("no NVIDIA GPU can be used here")
    targets = parse_capabilities(capabilities or gpu.capability)
    build_plan(folder, graph, Platform(load(flavour), targets, gpu), None, lambda *_: None)
    random = np.random.default_rng(0)
    feeds = {
        "logits": random.normal(size=(1, 8, vocab)).astype(np.float32) * 3,
        "temperature": np.array([0.8], np.float32),
        "top_k": np.array([50]),
        "top_p": np.array([0.95], np.float32),
        "uniforms": random.random(64).astype(np.float32),
        "depth": np.arange(8)[None],
        "past": np.array([5]),
    }
    session = onnxruntime.InferenceSession(str(folder / "sample.onnx"), providers=["CPUExecutionProvider"])
    return {"runs": True, "same_as_onnxruntime": bool((session.run(None, feeds)[0] == _on_device(folder, graph, flavour, feeds)).all())}


def _on_device(folder: Path, graph: Graph, flavour: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    module, cuda = load(flavour), Cuda()
    memory = DeviceMemory(cuda)
    try:
        plan = read_plan(folder, graph, module, module.Runtime(logger(module)), "scripts/gpu_check.py")
        strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
        limits = {"n": 8, "p": 64}
        engine = TrtEngine("sample", plan, graph, {}, limits, cuda, memory, Scratch(memory), lambda p: p.create_execution_context(strategy))
        call = engine.prepare(**limits)
        for name, values in feeds.items():
            call.inputs[name][:] = values
        for _ in range(3):  # once directly, twice from the CUDA graph
            call.run()
        tokens = np.array(call.outputs["token"])
        engine.close()
        return tokens
    finally:
        cuda.synchronize()
        memory.close()
        cuda.close()


def _sample_graph(vocab: int) -> Graph:
    inputs = {
        "logits": Tensor("float32", (1, "n", vocab)),
        "temperature": Tensor("float32", (1,)),
        "top_k": Tensor("int64", (1,)),
        "top_p": Tensor("float32", (1,)),
        "uniforms": Tensor("float32", ("p",)),
        "depth": Tensor("int64", (1, "n")),
        "past": Tensor("int64", (1,)),
    }
    profile = {"n": (1, 8, 8), "p": (64, 64, 64)}
    return Graph("sample.onnx", "sample.plan", (profile,), inputs, {"token": Tensor("int64", (1, "n"))})
