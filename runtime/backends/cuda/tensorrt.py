"""TensorRT backend: one execution context per optimization profile, all over one scratch block, and a CUDA graph per call."""

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

MAX_CALLS = 4096  # recorded calls kept per engine


class Scratch:
    """The memory that contexts work in. Engines take turns in one stream, so one block serves all."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._block: DeviceBuffer | None = None

    def block(self, size: int) -> DeviceBuffer:
        """At least ``size`` bytes. A larger wish gets a new block; contexts keep the one they have, recorded graphs know its address."""
        if self._block is None or self._block.size < size:
            self._block = self._memory.zeros(size, "uint8")
        return self._block


@dataclass(eq=False)
class TrtCall(DeviceCall):
    """One graph for fixed sizes. The first run is recorded, from then on the recording is launched."""

    engine: TrtEngine
    profile: int
    graph: int | None = None

    def run(self) -> None:
        self.engine.run(self)


class TrtEngine(PreparedCalls):
    """A plan on the GPU. ``buffers`` are shared with other engines; ``limits`` are the largest sizes of any call."""

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
        self._bound: dict[int, TrtCall] = {}  # what each context is set up for
        self._aliases = _aliases(name, plan, graph)

    def _bind(self, names: Mapping[str, str], sizes: Mapping[str, int]) -> TrtCall:
        profile = self._profile(sizes)
        bindings = bind(self._graph, self._memory, self._buffers, self._limits, names, sizes)
        for output, source in self._aliases.items():
            if bindings.bound_outputs[output].buffer != bindings.bound_inputs[source].buffer:
                raise EngineFailure(f"{self._name}: {output} and {source} must share memory — please report the model")
        return TrtCall(bindings, self, profile)

    def _profile(self, sizes: Mapping[str, int]) -> int:
        """The first profile that admits the sizes; profiles are listed small to large."""
        for index, ranges in enumerate(self._graph.profiles):
            if all(low <= sizes[dim] <= high for dim, (low, _, high) in ranges.items()):
                return index
        raise EngineFailure(f"no optimization profile of {self._name} admits {dict(sizes)} — export again with larger --tree-sizes")

    def run(self, call: TrtCall) -> None:
        """Put the call's inputs and its work into the stream. Raises EngineFailure."""
        bindings, cuda = call.bindings, self._cuda
        if bindings.block.size:
            self._memory.upload(bindings.address, bindings.block)
        self._memory.ran()
        if call.graph is not None:
            cuda.launch(call.graph)
            return
        context = self._context(call.profile)
        if self._bound.get(call.profile) is not call:
            self._set_up(context, call)
        self._enqueue(context)  # new shapes must run once before they can be recorded
        if self._can_record(context):
            call.graph = cuda.record(lambda: self._enqueue(context))

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._cuda.stream):
            raise EngineFailure(f"a pass of {self._name} failed inside TensorRT — run resps-run with -vv for its messages")

    def _can_record(self, context: Any) -> bool:
        asks = getattr(context, "is_stream_capturable", None)  # TensorRT-RTX has it
        return asks is None or bool(asks(self._cuda.stream))

    def _set_up(self, context: Any, call: TrtCall) -> None:
        sides = call.bindings.bound_inputs, call.bindings.bound_outputs
        accepted = all(context.set_input_shape(name, bound.shape) for name, bound in sides[0].items())
        accepted = accepted and all(
            context.set_tensor_address(name, bound.buffer.address) for side in sides for name, bound in side.items()
        )
        if not accepted:
            shapes = {name: bound.shape for name, bound in sides[0].items()}
            raise EngineFailure(f"TensorRT does not take the shapes {shapes} for {self._name} — please report the model")
        self._bound[call.profile] = call

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            # As large as the hungriest profile asks, so that all of them work in the same place.
            sizes = [self._plan.get_device_memory_size_for_profile_v2(index) for index in range(len(self._graph.profiles))]
            block = self._scratch.block(max(*sizes, 1))
            context = self._make_context(self._plan)
            context.set_device_memory(block.address, block.size)
            if not context.set_optimization_profile_async(profile, self._cuda.stream):
                raise EngineFailure(f"TensorRT refuses profile {profile} of {self._name} — please report the model")
            self._cuda.synchronize()
            self._contexts[profile] = context
        return self._contexts[profile]

    def _free(self, call: Call) -> None:
        assert isinstance(call, TrtCall)
        if call.graph is not None:
            self._cuda.discard(call.graph)
            call.graph = None
        if self._bound.get(call.profile) is call:
            del self._bound[call.profile]

    def close(self) -> None:
        """May be repeated."""
        self._drop()
        self._contexts.clear()
        self._buffers.clear()
        self._plan = None


def _aliases(name: str, plan: Any, graph: Graph) -> dict[str, str]:
    """Output -> the input whose memory it is, as the plan says. Raises EngineDirError when plan and manifest disagree."""
    if plan.num_optimization_profiles != len(graph.profiles):
        raise EngineDirError(
            f"{graph.plan} has {plan.num_optimization_profiles} profiles, the manifest lists {len(graph.profiles)} — export again"
        )
    found = {output: plan.get_aliased_input_tensor(output) for output in graph.outputs}
    aliases = {output: source for output, source in found.items() if source}
    lost = [output for output in graph.outputs if output.startswith("present.") and output not in aliases]
    if lost:
        raise EngineDirError(f"{name} would copy its cache in every pass ({lost[0]} is not in place) — export again with this version")
    return aliases


def read_plan(directory: Path, graph: Graph, trt: Any, runtime: Any, rebuild: str) -> Any:
    """The deserialized engine of a graph. Raises EngineDirError."""
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
