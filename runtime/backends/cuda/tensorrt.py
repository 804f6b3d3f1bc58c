"""Graphs in TensorRT: one execution context per optimization profile, all in one scratch block, and a CUDA graph for every call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import EngineDirError, EngineFailure
from ...manifest.graphs import Graph
from ..base import Buffer, Call, PreparedCalls
from .bindings import DeviceCall, bind
from .driver import Cuda
from .memory import DeviceBuffer, DeviceMemory

MAX_CALLS = 4096  # prepared calls kept per engine


class Scratch:
    """Working memory of execution contexts. All engines run in one stream, one after the other, so they share one block."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._block: DeviceBuffer | None = None

    def block(self, size: int) -> DeviceBuffer:
        """A block of at least ``size`` bytes. If the current one is too small, a new one is allocated. Contexts keep the old one, because
        captured graphs contain its address."""
        if self._block is None or self._block.size < size:
            self._block = self._memory.zeros(size, "uint8")
        return self._block


@dataclass(eq=False)
class TrtCall(DeviceCall):
    """One graph for fixed sizes. The first run captures a CUDA graph, and later runs launch it. ``profile``: index of its optimization
    profile."""

    engine: TrtEngine
    profile: int
    cuda_graph: int | None = None

    def run(self) -> None:
        self.engine.run(self)


class TrtEngine(PreparedCalls):
    """A plan on the GPU. ``buffers``: shared with other engines, by name. ``limits``: the largest value of each symbolic dimension.
    Raises EngineDirError if plan and manifest disagree."""

    def __init__(
        self,
        name: str,
        plan: Any,
        graph: Graph,
        buffers: Mapping[str, Buffer],
        limits: Mapping[str, int],
        cuda: Cuda,
        memory: DeviceMemory,
        scratch: Scratch,
        make_context: Callable[[Any], Any],
    ) -> None:
        super().__init__(MAX_CALLS)
        self._name, self._plan, self._graph, self._buffers, self._limits = name, plan, graph, dict(buffers), limits
        self._cuda, self._memory, self._scratch, self._make_context = cuda, memory, scratch, make_context
        self._contexts: dict[int, Any] = {}
        self._current: dict[int, TrtCall] = {}  # the call that each context is set up for, by profile
        self._aliases = _aliases(name, plan, graph)

    def _bind(self, names: Mapping[str, str], sizes: Mapping[str, int]) -> TrtCall:
        profile = self._profile(sizes)
        bindings = bind(self._graph, self._memory, self._buffers, self._limits, names, sizes)
        for output, source in self._aliases.items():
            if bindings.device_outputs[output].buffer != bindings.device_inputs[source].buffer:
                raise EngineFailure(f"{self._name}: {output} and {source} must share memory — please report the model")
        return TrtCall(bindings, self, profile)

    def _profile(self, sizes: Mapping[str, int]) -> int:
        """Index of the first profile that admits the sizes; profiles are ordered from small to large."""
        for index, ranges in enumerate(self._graph.profiles):
            if all(low <= sizes[dim] <= high for dim, (low, _, high) in ranges.items()):
                return index
        raise no_profile(self._name, sizes)

    def run(self, call: TrtCall) -> None:
        """Upload the call's inputs and start its pass in the stream. Raises EngineFailure."""
        bindings, cuda = call.bindings, self._cuda
        if bindings.host_block.size:
            self._memory.upload(bindings.block_address, bindings.host_block)
        self._memory.invalidate_readback()
        if call.cuda_graph is not None:
            cuda.launch_graph(call.cuda_graph)
            return
        context = self._context(call.profile)
        if self._current.get(call.profile) is not call:
            self._set_up(context, call)
        self._enqueue(context)  # new shapes must run once before they can be captured
        if self._is_capturable(context):
            call.cuda_graph = cuda.capture_graph(lambda: self._enqueue(context))

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._cuda.stream):
            raise EngineFailure(f"a pass of {self._name} failed inside TensorRT — run resps-run with -vv for its messages")

    def _is_capturable(self, context: Any) -> bool:
        is_stream_capturable = getattr(context, "is_stream_capturable", None)  # only TensorRT-RTX has it
        return is_stream_capturable is None or bool(is_stream_capturable(self._cuda.stream))

    def _set_up(self, context: Any, call: TrtCall) -> None:
        """Set the call's shapes and addresses in the context."""
        inputs, outputs = call.bindings.device_inputs, call.bindings.device_outputs
        accepted = all(context.set_input_shape(name, tensor.shape) for name, tensor in inputs.items())
        accepted = accepted and all(
            context.set_tensor_address(name, tensor.buffer.address) for side in (inputs, outputs) for name, tensor in side.items()
        )
        if not accepted:
            shapes = {name: tensor.shape for name, tensor in inputs.items()}
            raise EngineFailure(f"TensorRT rejects the shapes {shapes} for {self._name} — please report the model")
        self._current[call.profile] = call

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            # As large as the largest profile needs, so that all contexts share one block.
            sizes = [self._plan.get_device_memory_size_for_profile_v2(index) for index in range(len(self._graph.profiles))]
            block = self._scratch.block(max(*sizes, 1))
            context = self._make_context(self._plan)
            context.set_device_memory(block.address, block.size)
            if not context.set_optimization_profile_async(profile, self._cuda.stream):
                raise EngineFailure(f"TensorRT rejects profile {profile} of {self._name} — please report the model")
            self._cuda.synchronize()
            self._contexts[profile] = context
        return self._contexts[profile]

    def _free(self, call: Call) -> None:
        assert isinstance(call, TrtCall)
        if call.cuda_graph is not None:
            self._cuda.destroy_graph(call.cuda_graph)
            call.cuda_graph = None
        if self._current.get(call.profile) is call:
            del self._current[call.profile]

    def close(self) -> None:
        """Free everything. May be called repeatedly."""
        self._free_all()
        self._contexts.clear()
        self._buffers.clear()
        self._plan = None


def no_profile(name: str, sizes: Mapping[str, int]) -> EngineFailure:
    """The error of a pass for which the plan ``name`` was not built."""
    return EngineFailure(f"no optimization profile of {name} admits {dict(sizes)} — export again with larger --tree-sizes")


def _aliases(name: str, plan: Any, graph: Graph) -> dict[str, str]:
    """The plan's aliased outputs, each with the input whose memory it shares. Raises EngineDirError if plan and manifest disagree."""
    if plan.num_optimization_profiles != len(graph.profiles):
        raise EngineDirError(
            f"{graph.plan} has {plan.num_optimization_profiles} profiles, the manifest lists {len(graph.profiles)} — export again"
        )
    sources = {output: plan.get_aliased_input_tensor(output) for output in graph.outputs}
    aliases = {output: source for output, source in sources.items() if source}
    missing = [output for output in graph.outputs if output.startswith("present.") and output not in aliases]
    if missing:
        raise EngineDirError(f"{name} would copy its cache in every pass ({missing[0]} is not in place) — export again with this version")
    return aliases


def read_plan(directory: Path, graph: Graph, trt: Any, runtime: Any, rebuild: str) -> Any:
    """The deserialized plan of a graph. ``trt``, ``runtime``: the TensorRT module and its Runtime. ``rebuild``: the export command to name
    in an error. Raises EngineDirError."""
    path = directory / str(graph.plan)
    data = np.memmap(path, np.uint8, "r")
    if hasattr(runtime, "get_engine_validity"):  # TensorRT-RTX
        validity, diagnostics = runtime.get_engine_validity(data)
        if validity == trt.EngineValidity.INVALID:
            raise EngineDirError(
                f"TensorRT-RTX cannot run {path} on this GPU (diagnostics {int(diagnostics)}) — export again here: {rebuild}"
            )
    plan = runtime.deserialize_cuda_engine(data)
    if plan is None:
        raise EngineDirError(f"TensorRT cannot load {path}: made by another version, for another GPU, or damaged — export again: {rebuild}")
    return plan
