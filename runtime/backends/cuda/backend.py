"""A GPU: TensorRT plans where the directory has them, else the same graphs on ONNX Runtime's CUDA provider."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

from ...errors import EngineDirError, GpuMemoryError
from ...manifest.graphs import Tensor
from ...manifest.schema import Manifest
from ..base import Buffer, Engine, dtype_of
from ..kv import CacheLayout
from .driver import Cuda, Gpu
from .kv import DeviceKVCache
from .memory import DeviceMemory
from .onnxruntime import OrtCudaEngine, open_session
from .tensorrt import Scratch, TrtEngine, read_plan

_WORK = 256 << 20  # bytes: CUDA's own context, scratch and small buffers


class CudaBackend:
    """Everything in a stream of the first GPU. Raises EngineDirError for the wrong GPU or TensorRT, GpuMemoryError.

    Forks have their own buffers and caches and, with TensorRT, their own stream, execution contexts and scratch block: they run at the same
    time. ONNX Runtime's sessions belong to one stream, so there forks put their passes into it in turn.
    """

    def __init__(self, directory: Path, manifest: Manifest, *, with_plans: bool, twin: CudaBackend | None = None) -> None:
        """``with_plans``: TensorRT runs them; otherwise ONNX Runtime runs the ONNX files. ``twin``: its weights are shared."""
        self._directory, self._manifest, self._with_plans = directory, manifest, with_plans
        with ExitStack() as cleanup:
            self._stream: _Stream = _Stream() if twin is None or with_plans else twin._stream
            self._stream.enter(cleanup)
            self._cuda = self._stream.cuda
            expect_fitting(
                manifest if with_plans else replace(manifest, tensorrt=None), self._cuda.gpu(), self._cuda.free_memory(), twin is not None
            )
            self.memory = DeviceMemory(self._cuda)
            cleanup.callback(self.memory.close)
            cleanup.callback(self._cuda.synchronize)
            shared = twin._trt if twin else None
            self._trt: _TensorRT | None = _TensorRT(self._cuda, self.memory, manifest, shared) if with_plans else None
            cleanup.callback(setattr, self, "_trt", None)  # plans that forks use stay
            self._cleanup = cleanup.pop_all()

    def engine(self, name: str, shared: Mapping[str, Buffer], limits: Mapping[str, int]) -> Engine:
        graph = self._manifest.graph(name)
        engine: Engine
        if not self._with_plans:
            sessions = self._stream.sessions
            if name not in sessions:
                sessions[name] = open_session(self._directory / graph.file, self._cuda)
            session, options = sessions[name]
            engine = OrtCudaEngine(session, options, self._stream.turn, graph, shared, limits, self.memory)
        else:
            assert self._trt is not None
            engine = self._trt.engine(name, self._directory, shared, limits)
        self._cleanup.callback(engine.close)
        return engine

    def cache(self, layers: int, keys: CacheLayout, values: CacheLayout, capacity: int) -> DeviceKVCache:
        if values != keys:
            raise EngineDirError("int8 and int4 graphs for the CPU do not run on a GPU — export for it: resps-export --backend tensorrt")
        shape, step = (layers, keys.heads, capacity, keys.width), self._manifest.limits.span_step
        return DeviceKVCache(self._cuda, self.memory, shape, keys.dtype, step, static=self._manifest.tensorrt is not None)

    def fork(self) -> CudaBackend:
        return CudaBackend(self._directory, self._manifest, with_plans=self._with_plans, twin=self)

    def close(self) -> None:
        self._cleanup.close()


class _Stream:
    """A stream, and ONNX Runtime's sessions that are bound to it, with their weights. The last backend that leaves closes it."""

    def __init__(self) -> None:
        self.cuda = Cuda()
        self.sessions: dict[str, tuple[Any, Any]] = {}
        self.turn = Lock()
        self._users = 0

    def enter(self, cleanup: ExitStack) -> None:
        """Use it until ``cleanup``."""
        with self.turn:
            self._users += 1
        cleanup.callback(self._leave)

    def _leave(self) -> None:
        with self.turn:
            self._users -= 1
            if self._users == 0:
                self.sessions.clear()
                self.cuda.close()


class _TensorRT:
    """What all plans of a directory have in common: the module, its runtime and the scratch block. Forks share the plans, hence weights."""

    def __init__(self, cuda: Cuda, memory: DeviceMemory, manifest: Manifest, twin: _TensorRT | None) -> None:
        self._cuda, self._memory, self._manifest = cuda, memory, manifest
        self._scratch = Scratch(memory)
        if twin is None:
            self._module, self._runtime = self._started()
            self._plans: dict[str, Any] = {}
        else:
            self._module, self._runtime, self._plans = twin._module, twin._runtime, twin._plans

    def _started(self) -> tuple[Any, Any]:
        from .tensorrt_module import load, logger

        manifest = self._manifest
        built = manifest.tensorrt
        assert built is not None
        module: Any = load(built.flavour)
        if module.__version__ != built.version:
            raise EngineDirError(
                f"the engines were built with {built.flavour} {built.version}, installed is {module.__version__} — export again: "
                f"{manifest.rebuild}"
            )
        return module, module.Runtime(logger(module))

    def engine(self, name: str, directory: Path, shared: Mapping[str, Buffer], limits: Mapping[str, int]) -> TrtEngine:
        graph = self._manifest.graph(name)
        if name not in self._plans:
            self._plans[name] = read_plan(directory, graph, self._module, self._runtime, self._manifest.rebuild)
        return TrtEngine(name, self._plans[name], graph, shared, limits, self._cuda, self._memory, self._scratch, self._context)

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


def expect_fitting(manifest: Manifest, gpu: Gpu, free: int, loaded: bool = False) -> None:
    """Raises EngineDirError for a GPU that the plans are not for, and GpuMemoryError when they do not fit. ``loaded``: the weights are
    there already."""
    built = manifest.tensorrt
    # A plan of TensorRT-RTX is compiled on the GPU that loads it, and says itself whether it can be.
    if built is not None and built.flavour == "tensorrt" and gpu.compute_capability not in built.compute_capabilities:
        made_for = built.gpu or "compute capability " + ", ".join(built.compute_capabilities)
        raise EngineDirError(
            f"the engines were built for {made_for}, this is {gpu.name} ({gpu.compute_capability}) — export again here: {manifest.rebuild}"
        )
    weights, cache = _bytes(manifest)
    weights = 0 if loaded else weights
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
