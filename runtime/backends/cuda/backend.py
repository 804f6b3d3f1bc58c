"""CudaBackend: an engine directory on a GPU, by TensorRT plans or by ONNX Runtime's CUDA provider."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ...errors import EngineDirError, GpuMemoryError
from ...manifest.graphs import Tensor
from ...manifest.schema import Manifest
from ..base import Buffer, CacheLayout, Engine, dtype_of
from .driver import Cuda, Gpu
from .kv import DeviceKVCache, doubling_spans
from .lane_engine import DeviceLanesEngine
from .lane_pages import DevicePages
from .memory import DeviceMemory
from .onnxruntime import OrtCudaEngine, open_session
from .tensorrt import Scratch, TrtEngine, read_plan

_WITH_LANES = ("target", "draft")  # graphs that exist for one lane and for several
_OVERHEAD = 256 << 20  # bytes: CUDA's context, scratch memory and small buffers


class CudaBackend:
    """A Backend on the first GPU. Raises EngineDirError for the wrong GPU or version of TensorRT, and GpuMemoryError.

    Forks have their own buffers and caches. With TensorRT they also have their own stream, execution contexts and scratch block, so they
    run at the same time. ONNX Runtime's sessions belong to one stream, so there forks take turns.
    """

    def __init__(
        self, directory: Path, manifest: Manifest, *, with_plans: bool, lanes: int = 1, fork_of: CudaBackend | None = None
    ) -> None:
        """``with_plans``: whether TensorRT runs the plans; otherwise ONNX Runtime runs the ONNX files. ``lanes``: requests at the same
        time. ``fork_of``: shares its weights."""
        self._directory, self._manifest, self._with_plans, self._lanes = directory, manifest, with_plans, lanes
        with ExitStack() as cleanup:
            self._stream: _Stream = _Stream() if fork_of is None or with_plans else fork_of._stream
            self._stream.enter(cleanup)
            self._cuda = self._stream.cuda
            used_manifest = manifest if with_plans else replace(manifest, tensorrt=None)
            check_gpu(used_manifest, self._cuda.gpu(), self._cuda.free_memory(), lanes, weights_loaded=fork_of is not None)
            self.memory = DeviceMemory(self._cuda)
            cleanup.callback(self.memory.close)
            cleanup.callback(self._cuda.synchronize)
            shared = fork_of._trt if fork_of else None
            self._trt: _TensorRT | None = _TensorRT(self._cuda, self.memory, manifest, shared) if with_plans else None
            cleanup.callback(setattr, self, "_trt", None)  # forks keep the plans they share
            self._cleanup = cleanup.pop_all()

    def engine(self, name: str, shared: Mapping[str, Buffer], limits: Mapping[str, int]) -> Engine:
        graph = self._manifest.graph(name)
        engine: Engine
        if not self._with_plans:
            sessions = self._stream.sessions
            if name not in sessions:
                sessions[name] = open_session(self._directory / graph.file, self._cuda)
            session, options = sessions[name]
            engine = OrtCudaEngine(session, options, self._stream.session_lock, graph, shared, limits, self.memory)
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

    def lanes(self, name: str, lanes: int, slots: int) -> tuple[DeviceLanesEngine, DevicePages]:
        graph = self._manifest.graph(name)
        pages = DevicePages(self._cuda, self.memory, lanes, graph)
        arange = self.memory.zeros(pages.page_slots, "int64")
        self.memory.write(arange, np.arange(pages.page_slots))
        most = {dim: max(profile[dim][2] for profile in graph.profiles) for dim in graph.profiles[0]}
        plan = self.engine(name, {**pages.buffers(), "slots": arange, "beam": arange}, most)
        assert isinstance(plan, TrtEngine)  # ONNX Runtime's provider has no lanes (lanes/choose.py)
        engine = DeviceLanesEngine(name, plan, graph, pages, doubling_spans(self._manifest.limits.span_step, pages.page_slots))
        engine.warm_up()
        return engine, pages

    def fork(self, manifest: Manifest | None = None) -> CudaBackend:
        return CudaBackend(self._directory, manifest or self._manifest, with_plans=self._with_plans, lanes=self._lanes, fork_of=self)

    def close(self) -> None:
        self._cleanup.close()


class _Stream:
    """A stream and the ONNX Runtime sessions that run in it. The last backend that uses it closes it."""

    def __init__(self) -> None:
        self.cuda = Cuda()
        self.sessions: dict[str, tuple[Any, Any]] = {}
        self.session_lock = Lock()
        self._users = 0

    def enter(self, cleanup: ExitStack) -> None:
        """Use the stream until ``cleanup``."""
        with self.session_lock:
            self._users += 1
        cleanup.callback(self._leave)

    def _leave(self) -> None:
        with self.session_lock:
            self._users -= 1
            if self._users == 0:
                self.sessions.clear()
                self.cuda.close()


class _TensorRT:
    """The TensorRT module, its runtime, the scratch block and the plans of a directory. Forks share the plans, and so the weights."""

    def __init__(self, cuda: Cuda, memory: DeviceMemory, manifest: Manifest, fork_of: _TensorRT | None) -> None:
        self._cuda, self._memory, self._manifest = cuda, memory, manifest
        self._scratch = Scratch(memory)
        if fork_of is None:
            self._module, self._runtime = self._load_module()
            self._plans: dict[str, Any] = {}
        else:
            self._module, self._runtime, self._plans = fork_of._module, fork_of._runtime, fork_of._plans
            if manifest is not fork_of._manifest:  # another tuning, whose networks have the same names
                self._plans = {name: plan for name, plan in self._plans.items() if name in manifest.graphs}

    def _load_module(self) -> tuple[Any, Any]:
        """The TensorRT module and its Runtime. Raises EngineDirError for another version than the plans were built with."""
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
        """An execution context that uses our scratch block."""
        trt = self._module
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(plan, "create_runtime_config") or not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return plan.create_execution_context(strategy)
        config = plan.create_runtime_config()  # TensorRT-RTX compiles kernels on this GPU, when a shape first runs
        config.set_execution_context_allocation_strategy(strategy)
        # Compile at once and not in the background, because a captured graph keeps the kernels it was captured with.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return plan.create_execution_context(config)


def check_gpu(manifest: Manifest, gpu: Gpu, free: int, lanes: int = 1, weights_loaded: bool = False) -> None:
    """Raises EngineDirError if the plans are for another GPU, and GpuMemoryError if ``free`` bytes are too few for the engines and the
    caches of ``lanes`` requests."""
    built = manifest.tensorrt
    # A plan of TensorRT-RTX is compiled on the GPU that loads it; read_plan checks whether it can be.
    if built is not None and built.flavour == "tensorrt" and gpu.compute_capability not in built.compute_capabilities:
        made_for = built.gpu or "compute capability " + ", ".join(built.compute_capabilities)
        raise EngineDirError(
            f"the engines were built for {made_for}, this is {gpu.name} ({gpu.compute_capability}) — export again here: {manifest.rebuild}"
        )
    weights, cache = _weight_and_cache_bytes(manifest, lanes)
    weights = 0 if weights_loaded else weights
    needed = weights + cache + _OVERHEAD
    if needed > free:
        room = max(0, free - weights - _OVERHEAD)
        context, fit = manifest.limits.context * room // cache // 64 * 64, room * lanes // cache
        advice = f"export again with --max-context {context}" if context >= 64 else "use a smaller model or precision"
        several, fewer = (f"{lanes} times ", f"use {fit} lanes, or " if fit else "") if lanes > 1 else ("", "")
        raise GpuMemoryError(
            f"{gpu.name} has {free >> 20} MiB free of {gpu.memory >> 20}, the engines need about {needed >> 20} ({weights >> 20} weights, "
            f"{cache >> 20} cache of {several}{manifest.limits.context} tokens) — {fewer}{advice}"
        )


def _weight_and_cache_bytes(manifest: Manifest, lanes: int = 1) -> tuple[int, int]:
    """Bytes of weights and of KV caches. The weights of ONNX graphs are in .data files, those of plans inside the plans, of which a Decoder
    with several lanes loads others than one with a single lane."""
    graphs = {name: graph for name, graph in manifest.graphs.items() if name.endswith("_lanes") == (lanes > 1)}
    caches = [tensor for graph in graphs.values() for name, tensor in graph.inputs.items() if name.startswith("past.")]
    unused = {graph.plan for name, graph in manifest.graphs.items() if name.removesuffix("_lanes") in _WITH_LANES and name not in graphs}
    ending = ".plan" if manifest.tensorrt else ".data"
    weights = sum(file.bytes for name, file in manifest.files.items() if name.endswith(ending) and name not in unused)
    return weights, lanes * sum(_tensor_bytes(tensor, manifest.limits.capacity) for tensor in caches)


def _tensor_bytes(tensor: Tensor, capacity: int) -> int:
    """Bytes of one lane's cache. ``capacity``: slots, unless the graph says it."""
    sizes = {"B": 1}  # a graph with lanes has any number of them
    return prod(sizes.get(dim, capacity) if isinstance(dim, str) else dim for dim in tensor.shape) * dtype_of(tensor.dtype).itemsize
