"""A GPU: TensorRT plans where the directory has them, else the same graphs on ONNX Runtime's CUDA provider."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from .cuda import Cuda, Gpu
from .device_memory import DeviceMemory
from .engine import Buffer, Engine, dtype_of
from .engine_ort_cuda import OrtCudaEngine
from .engine_trt import Scratch, TrtEngine, read_plan
from .errors import EngineDirError, GpuMemoryError, RespsError
from .kv import Form
from .kv_device import DeviceKVCache
from .manifest import Manifest, Tensor

_WORK = 256 << 20  # bytes: CUDA's own context, scratch and small buffers


class CudaBackend:
    """Everything in one stream of the first GPU. Raises EngineDirError for the wrong GPU or TensorRT, GpuMemoryError."""

    def __init__(self, directory: Path, manifest: Manifest, *, with_plans: bool) -> None:
        """``with_plans``: TensorRT runs them; otherwise ONNX Runtime runs the ONNX files."""
        self._directory, self._manifest = directory, manifest
        with ExitStack() as cleanup:
            self._cuda = Cuda()
            cleanup.callback(self._cuda.close)
            expect_fitting(manifest if with_plans else replace(manifest, tensorrt=None), self._cuda.gpu(), self._cuda.free_memory())
            self.memory = DeviceMemory(self._cuda)
            cleanup.callback(self.memory.close)
            cleanup.callback(self._cuda.synchronize)
            self._trt = _TensorRT(self._cuda, self.memory, manifest) if with_plans else None
            self._cleanup = cleanup.pop_all()

    @property
    def directory(self) -> Path:
        return self._directory

    def engine(self, name: str, shared: Mapping[str, Buffer], limits: Mapping[str, int]) -> Engine:
        graph = self._manifest.graph(name)
        engine: Engine
        if self._trt is None:
            engine = OrtCudaEngine(self._directory, graph, shared, limits, self._cuda, self.memory)
        else:
            engine = self._trt.engine(name, self._directory, shared, limits)
        self._cleanup.callback(engine.close)
        return engine

    def cache(self, layers: int, keys: Form, values: Form, capacity: int) -> DeviceKVCache:
        if values != keys:
            raise EngineDirError("int8 and int4 graphs for the CPU do not run on a GPU — export for it: resps-export --backend tensorrt")
        shape, step = (layers, keys.heads, capacity, keys.width), self._manifest.limits.span_step
        return DeviceKVCache(self._cuda, self.memory, shape, keys.dtype, step, static=self._manifest.tensorrt is not None)

    def fork(self) -> CudaBackend:
        raise RespsError("a Decoder on a GPU cannot be forked yet — make a second Decoder, or use the CPU")

    def close(self) -> None:
        self._cleanup.close()


class _TensorRT:
    """What all plans of a directory have in common: the module, its runtime and the scratch block."""

    def __init__(self, cuda: Cuda, memory: DeviceMemory, manifest: Manifest) -> None:
        from .trt import load, logger

        built = manifest.tensorrt
        assert built is not None
        self._module: Any = load(built.flavour)
        if self._module.__version__ != built.version:
            raise EngineDirError(
                f"the engines were built with {built.flavour} {built.version}, installed is {self._module.__version__} — export again: "
                f"{manifest.rebuild}"
            )
        self._runtime = self._module.Runtime(logger(self._module))
        self._cuda, self._memory, self._manifest = cuda, memory, manifest
        self._scratch = Scratch(memory)

    def engine(self, name: str, directory: Path, shared: Mapping[str, Buffer], limits: Mapping[str, int]) -> TrtEngine:
        graph = self._manifest.graph(name)
        plan = read_plan(directory, graph, self._module, self._runtime, self._manifest.rebuild)
        return TrtEngine(name, plan, graph, shared, limits, self._cuda, self._memory, self._scratch, self._context)

    def _context(self, plan: Any) -> Any:
        """An execution context that works in memory of ours."""
        trt = self._module
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(plan, "create_runtime_config") or not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return plan.create_execution_context(strategy)
        config = plan.create_runtime_config()  # TensorRT-RTX compiles its kernels on this GPU, as the shapes come
        config.set_execution_context_allocation_strategy(strategy)
        # At once and not in the background: a recorded graph keeps the kernels that it was recorded with.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return plan.create_execution_context(config)


def expect_fitting(manifest: Manifest, gpu: Gpu, free: int) -> None:
    """Raises EngineDirError for a GPU that the plans are not for, and GpuMemoryError when they do not fit."""
    built = manifest.tensorrt
    # A plan of TensorRT-RTX is compiled on the GPU that loads it, and says itself whether it can be.
    if built is not None and built.flavour == "tensorrt" and gpu.compute_capability not in built.compute_capabilities:
        made_for = built.gpu or "compute capability " + ", ".join(built.compute_capabilities)
        raise EngineDirError(
            f"the engines were built for {made_for}, this is {gpu.name} ({gpu.compute_capability}) — export again here: {manifest.rebuild}"
        )
    weights, cache = _bytes(manifest)
    needed = weights + cache + _WORK
    if needed > free:
        context = manifest.limits.context * max(0, free - weights - _WORK) // cache // 64 * 64
        advice = f"export again with --max-context {context}" if context >= 64 else "use a smaller model or precision"
        raise GpuMemoryError(
            f"{gpu.name} has {free >> 20} MiB free of {gpu.memory >> 20}, the engines need about {needed >> 20} ({weights >> 20} weights, "
            f"{cache >> 20} cache of {manifest.limits.context} tokens) — {advice}"
        )


def _bytes(manifest: Manifest) -> tuple[int, int]:
    """Weights and KV caches. The weights of ONNX graphs lie in .data files, those of plans inside."""
    files = [file for name, file in manifest.files.items() if name.endswith(".plan" if manifest.tensorrt else ".data")]
    caches = [tensor for graph in manifest.graphs.values() for name, tensor in graph.inputs.items() if name.startswith("past.")]
    return sum(file.bytes for file in files), sum(_size(tensor, manifest.limits.capacity) for tensor in caches)


def _size(tensor: Tensor, capacity: int) -> int:
    return prod(capacity if isinstance(dim, str) else dim for dim in tensor.shape) * dtype_of(tensor.dtype).itemsize
