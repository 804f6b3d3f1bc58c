"""The emulated TensorRT: plans that run their ONNX files in ONNX Runtime, and contexts that check their arguments."""

from __future__ import annotations

import ctypes
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import runtime.backends.cuda.backend
import runtime.backends.cuda.tensorrt_module
from runtime import Decoder
from tests.support.gpu.emulated_gpu import JUNK, EmulatedCuda


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


class EmulatedMachine:
    """An engine directory, and an emulated GPU with its TensorRT on which its Decoders run."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, kind: type[EmulatedTrt] = EmulatedRtx) -> None:
        self.directory, self.cuda = directory, EmulatedCuda()
        self.trt: Any = kind(directory, self.cuda)
        streams = chain((self.cuda,), iter(self.cuda.another, None))  # one per Decoder
        monkeypatch.setattr(runtime.backends.cuda.backend, "Cuda", lambda: next(streams))
        monkeypatch.setattr(runtime.backends.cuda.tensorrt_module, "load", lambda flavour: self.trt)
        monkeypatch.setattr(runtime.backends.cuda.tensorrt_module, "logger", lambda module: None)

    def decoder(self, **options: Any) -> Decoder:
        return Decoder(self.directory, **options)


Change = Callable[[dict[str, Any]], None]


def altered(machine: EmulatedMachine, tmp_path: Path, change: Change) -> Path:
    """A copy of the directory with a changed manifest."""
    copy = tmp_path / "copy"
    shutil.copytree(machine.directory, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy
