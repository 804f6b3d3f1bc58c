"""An emulated GPU and TensorRT on the host, on which the real GPU backends run.

Work in a stream runs only when someone waits for it, addresses are checked against allocations, and plans run their ONNX files in ONNX
Runtime. So tests detect a missing wait, an upload that changed too early, a wrong address, shape, profile or alias, an outdated CUDA graph,
and a memory leak.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from runtime.backends.cuda.driver import Gpu

JUNK = 0x7F  # the bytes of unwritten memory, which are large as floats


class EmulatedCuda:
    """Emulates driver.Cuda. ``eager``: work runs at once, for engines that do not use the stream."""

    def __init__(self, capability: str = "9.0", memory: int = 1 << 33, eager: bool = False) -> None:
        self.capability, self.memory, self.eager = capability, memory, eager
        self.stream = 77
        self.calls: Counter[str] = Counter()
        self.waits_with_work = 0
        self.downloads = 0
        self._alive: dict[int, Any] = {}
        self._pinned: set[int] = set()
        self._queue: list[Callable[[], None]] = []
        self._capture: list[Callable[[], None]] | None = None
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self.closed = False
        self.streams = [self]

    def another(self) -> EmulatedCuda:
        """Another stream of the same GPU."""
        other = EmulatedCuda(self.capability, self.memory, self.eager)
        other.stream, other._alive, other._pinned, other.streams = self.stream + len(self.streams), self._alive, self._pinned, self.streams
        self.streams.append(other)
        return other

    def on(self, stream: int) -> EmulatedCuda:
        """The one with this stream."""
        return next(each for each in self.streams if each.stream == stream)

    def gpu(self) -> Gpu:
        return Gpu("Emulated", self.capability, self.memory)

    def used(self) -> int:
        return sum(len(block) for address, block in list(self._alive.items()) if address not in self._pinned)

    def free_memory(self) -> int:
        return self.memory - self.used()

    def allocate(self, size: int) -> int:
        assert size > 0
        block = (ctypes.c_uint8 * (size + 256))()
        address = -(-ctypes.addressof(block) // 256) * 256
        ctypes.memset(address, JUNK, size)
        view = (ctypes.c_uint8 * size).from_address(address)
        view._keep = block  # type: ignore[attr-defined]
        self._alive[address] = view
        return address

    def free(self, address: int) -> None:
        assert not self._queue, "memory was freed while work still uses it"
        del self._alive[address]

    def allocate_pinned(self, size: int) -> int:
        address = self.allocate(size)
        self._pinned.add(address)
        return address

    def free_pinned(self, address: int) -> None:
        self._pinned.remove(address)
        self.free(address)

    def check(self, address: int, size: int) -> None:
        """Fails unless the range lies inside one live allocation."""
        assert any(start <= address and address + size <= start + len(block) for start, block in list(self._alive.items())), (address, size)

    def put(self, work: Callable[[], None]) -> None:
        if self._capture is not None:
            self._capture.append(work)
        elif self.eager:
            work()
        else:
            self._queue.append(work)

    @property
    def capturing(self) -> bool:
        return self._capture is not None

    def copy(self, target: int, source: int, size: int) -> None:
        self.calls["copy"] += 1
        self.check(target, size)
        self.check(source, size)
        assert target + size <= source or source + size <= target, "copies must not overlap"
        self.downloads += any(start <= target < start + len(self._alive[start]) for start in list(self._pinned))
        self.put(lambda: ctypes.memmove(target, source, size) and None)

    def copy_rows(self, target: int, source: int, pitch: int, width: int, rows: int) -> None:
        self.calls["copy_rows"] += 1
        for row in range(rows):
            self.check(target + row * pitch, width)
            self.check(source + row * pitch, width)

        def work() -> None:
            for row in range(rows):
                ctypes.memmove(target + row * pitch, source + row * pitch, width)

        self.put(work)

    def clear(self, target: int, size: int) -> None:
        self.clear_rows(target, size, size, 1)

    def clear_rows(self, target: int, pitch: int, width: int, rows: int) -> None:
        for row in range(rows):
            self.check(target + row * pitch, width)

        def work() -> None:
            for row in range(rows):
                ctypes.memset(target + row * pitch, 0, width)

        self.put(work)

    def synchronize(self) -> None:
        assert self._capture is None, "waiting is not allowed during capture"
        self.calls["synchronize"] += 1
        self.waits_with_work += bool(self._queue)
        for work in self._queue:
            work()
        self._queue.clear()

    def capture_graph(self, work: Callable[[], None]) -> int:
        self._capture = []
        try:
            work()
            graph = len(self._graphs) + 1000
            self._graphs[graph] = self._capture
            self.calls["capture_graph"] += 1
            return graph
        finally:
            self._capture = None

    def launch_graph(self, graph: int) -> None:
        self.calls["launch_graph"] += 1
        for work in self._graphs[graph]:
            self.put(work)

    def destroy_graph(self, graph: int) -> None:
        self._graphs[graph] = []
        self.calls["destroy_graph"] += 1

    def record_event(self) -> int:
        self.calls["record_event"] += 1
        return self.calls["record_event"]

    def elapsed_ms(self, first: int, second: int) -> float:
        """Not a measurement: the number of events between the two."""
        self.synchronize()
        return float(second - first)

    def close(self) -> None:
        assert not self.closed
        assert not self._queue
        self.closed = True

    def leaked(self) -> tuple[int, int]:
        """(allocations, CUDA graphs) that were not freed."""
        return len(self._alive), sum(each.calls["capture_graph"] - each.calls["destroy_graph"] for each in self.streams)


class EmulatedTrt:
    """The part of `tensorrt` that the runtime uses, for the plans of one engine directory."""

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user-managed")

    def __init__(self, directory: Path, cuda: EmulatedCuda) -> None:
        manifest = json.loads((directory / "manifest.json").read_text())
        self.cuda, self.__version__ = cuda, manifest["tensorrt"]["version"]
        self.graphs: dict[str, tuple[Path, Any]] = {}
        for graph in [*manifest["graphs"].values(), *(manifest["tuning"] or {"graphs": {}})["graphs"].values()]:
            digest = hashlib.sha256((directory / graph["plan"]).read_bytes()).hexdigest()
            self.graphs[digest] = directory / graph["file"], graph
        self.engines: list[EmulatedEngine] = []
        self.scratch_streams: dict[int, int] = {}  # scratch block -> the stream that uses it
        self.failing = ""

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._deserialize)

    def Logger(self, *_: Any) -> Any:
        return SimpleNamespace()

    def _deserialize(self, data: Any) -> Any:
        found = self.graphs.get(hashlib.sha256(bytes(data)).hexdigest())
        if found is None:
            return None
        self.engines.append(self._engine(*found))
        return self.engines[-1]

    def _engine(self, file: Path, graph: Any) -> EmulatedEngine:
        return EmulatedEngine(self, file, graph)


class EmulatedRtx(EmulatedTrt):
    """Adds what only `tensorrt_rtx` has: a validity check of plans, and a configuration of contexts."""

    class EngineValidity:
        VALID, SUBOPTIMAL, INVALID = range(3)

    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def __init__(self, directory: Path, cuda: EmulatedCuda) -> None:
        super().__init__(directory, cuda)
        self.validity = self.EngineValidity.VALID

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._deserialize, get_engine_validity=lambda data: (self.validity, 0))

    def _engine(self, file: Path, graph: Any) -> EmulatedEngine:
        return EmulatedRtxEngine(self, file, graph)


class EmulatedEngine:
    """A plan: its ONNX file and its optimization profiles."""

    def __init__(self, trt: EmulatedTrt, file: Path, graph: Mapping[str, Any]) -> None:
        self.trt, self.file, self.graph = trt, file, graph
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(file, load_external_data=False).graph.node
        self._aliases = {node.output[0]: node.input[0] for node in nodes if node.op_type == "TensorScatter"}
        self.num_optimization_profiles = len(graph["profiles"])
        self.contexts: list[EmulatedContext] = []

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self._aliases.get(name)

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return 1000 * (index + 1) + len(self.file.name)

    def create_execution_context(self, strategy: Any) -> Any:
        assert strategy == "user-managed"
        self.contexts.append(EmulatedContext(self))
        return self.contexts[-1]


class EmulatedRtxEngine(EmulatedEngine):
    """A plan whose contexts take a configuration."""

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(strategy=None, dynamic_shapes_kernel_specialization_strategy="lazy")
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        return config

    def create_execution_context(self, strategy: Any) -> Any:
        assert strategy.dynamic_shapes_kernel_specialization_strategy == "eager"
        context = super().create_execution_context(strategy.strategy)
        context.is_stream_capturable = lambda stream: True
        return context


class EmulatedContext:
    """An execution context: checks shapes, addresses and profiles, and enqueues the plan's ONNX graph."""

    def __init__(self, engine: EmulatedEngine) -> None:
        self.engine, self.cuda = engine, engine.trt.cuda
        self.profile: int | None = None
        self._scratch = (0, 0)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._warm: tuple[Any, ...] | None = None

    def set_device_memory(self, address: int, size: int) -> None:
        self.cuda.check(address, size)
        count = self.engine.num_optimization_profiles
        assert size >= max(self.engine.get_device_memory_size_for_profile_v2(index) for index in range(count))
        self._scratch = address, size

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.cuda = self.cuda.on(stream)
        assert self.engine.trt.scratch_streams.setdefault(self._scratch[0], stream) == stream, "two streams use the same scratch block"
        assert self.profile is None, "a context keeps its profile"
        self.profile = index
        return 0 <= index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        ranges = self.engine.graph["profiles"][self.profile]
        declared = self.engine.graph["inputs"][name]["shape"]
        fits = len(declared) == len(shape)
        for wanted, size in zip(declared, shape, strict=False):
            low, _, high = ranges[wanted] if isinstance(wanted, str) else (wanted, wanted, wanted)
            fits = fits and low <= size <= high
        self._shapes[name] = tuple(shape)
        return fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0, f"{name} is not aligned"
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.cuda.stream
        assert self._scratch[1], "no scratch memory"
        graph = self.engine.graph
        if self.engine.trt.failing and self.engine.file.name.startswith(self.engine.trt.failing):
            return False
        sizes: dict[str, int] = {}
        for name, tensor in graph["inputs"].items():
            for wanted, size in zip(tensor["shape"], self._shapes[name], strict=True):
                if isinstance(wanted, str):
                    assert sizes.setdefault(wanted, size) == size, f"{name}: {wanted} is {size} and {sizes[wanted]}"
        sizes |= {"v": sizes.get("w", 0) + sizes.get("k", 0), "q": sizes.get("p", 0) + sizes.get("b", 0) * sizes.get("k", 0)}
        state = (tuple(sorted(self._shapes.items())), tuple(sorted(self._addresses.items())))
        assert not self.cuda.capturing or self._warm == state, "new shapes must run once before they are captured"
        self._warm = state
        bound = {side: self._bound(graph[side], sizes) for side in ("inputs", "outputs")}
        self.cuda.put(lambda: self._run(bound))
        return True

    def _bound(self, tensors: Mapping[str, Any], sizes: Mapping[str, int]) -> list[tuple[Any, ...]]:
        found = []
        for name, tensor in tensors.items():
            shape = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in tensor["shape"])
            kind = np.dtype(tensor["dtype"])
            self.cuda.check(self._addresses[name], int(np.prod(shape)) * kind.itemsize)
            found.append((name, "cpu", 0, kind.type, shape, self._addresses[name]))
        return found

    def _run(self, bound: Mapping[str, list[tuple[Any, ...]]]) -> None:
        ctypes.memset(self._scratch[0], JUNK, self._scratch[1])
        binding = self.engine.session.io_binding()
        for each in bound["inputs"]:
            binding.bind_input(*each)
        for each in bound["outputs"]:
            binding.bind_output(*each)
        self.engine.session.run_with_iobinding(binding)
