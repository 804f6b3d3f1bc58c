"""The CUDA calls that the GPU backends need, over NVIDIA's cuda-bindings. No other module imports that package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import EngineDirError, EngineFailure


@dataclass(frozen=True)
class Gpu:
    """A GPU. ``compute_capability``: such as "9.0". ``memory``: total bytes."""

    name: str
    compute_capability: str
    memory: int


class Cuda:
    """Memory, copies, one stream and its CUDA graphs on the first GPU. Sizes are in bytes, addresses are integers.

    Raises EngineDirError if no GPU can be used. Every method raises EngineFailure with CUDA's error name.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError:
            raise EngineDirError("cuda-bindings is not installed — pip install 'resps[rtx]' (or [tensorrt], [gpu])") from None
        self._api: Any = runtime
        status, count = runtime.cudaGetDeviceCount()
        if status != runtime.cudaError_t.cudaSuccess or count == 0:
            reason = "no device" if status == runtime.cudaError_t.cudaSuccess else status.name
            raise EngineDirError(f"no NVIDIA GPU can be used here ({reason}) — check nvidia-smi, or export for the CPU: resps-export")
        self._ok = runtime.cudaError_t.cudaSuccess
        self._kind = runtime.cudaMemcpyKind.cudaMemcpyDefault
        self._call(runtime.cudaSetDevice, 0)
        self.stream: int = int(self._call(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking))

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        status, *results = function(*arguments)
        if status != self._ok:
            raise EngineFailure(f"{function.__name__} failed on the GPU: {status.name} — check nvidia-smi, then make a new Decoder")
        return results[0] if results else None

    def gpu(self) -> Gpu:
        """The device's name, compute capability and memory."""
        found = self._call(self._api.cudaGetDeviceProperties, 0)
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        return Gpu(name, f"{found.major}.{found.minor}", int(found.totalGlobalMem))

    def free_memory(self) -> int:
        """Free bytes on the device."""
        status, free, _ = self._api.cudaMemGetInfo()
        if status != self._ok:
            raise EngineFailure(f"the GPU's free memory cannot be read: {status.name} — check nvidia-smi")
        return int(free)

    def allocate(self, size: int) -> int:
        """The address of new device memory."""
        return int(self._call(self._api.cudaMalloc, size))

    def free(self, address: int) -> None:
        """Free device memory."""
        self._call(self._api.cudaFree, address)

    def allocate_pinned(self, size: int) -> int:
        """The address of new pinned host memory, which asynchronous copies need."""
        return int(self._call(self._api.cudaMallocHost, size))

    def free_pinned(self, address: int) -> None:
        """Free pinned host memory."""
        self._call(self._api.cudaFreeHost, address)

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy between host and device or inside one of them, in the stream's order. Host memory must be pinned and must not change until
        the copy ran."""
        self._call(self._api.cudaMemcpyAsync, target, source, size, self._kind, self.stream)

    def copy_rows(self, target: int, source: int, pitch: int, width: int, rows: int) -> None:
        """Copy ``rows`` rows of ``width`` bytes that start ``pitch`` bytes apart on both sides."""
        self._call(self._api.cudaMemcpy2DAsync, target, pitch, source, pitch, width, rows, self._kind, self.stream)

    def copy_blocks(self, target: int, source: int, width: int, rows: tuple[int, int], blocks: tuple[int, int]) -> None:
        """Copy pieces of ``width`` bytes of device memory: ``rows`` and ``blocks`` are how many there are, and how many bytes apart they
        start. Blocks start a whole number of rows apart."""
        (count, pitch), (depth, apart) = rows, blocks
        api, copy = self._api, self._api.cudaMemcpy3DParms()
        copy.srcPtr, copy.dstPtr = (api.make_cudaPitchedPtr(address, pitch, width, apart // pitch) for address in (source, target))
        copy.extent, copy.kind = api.make_cudaExtent(width, count, depth), self._kind
        self._call(api.cudaMemcpy3DAsync, copy, self.stream)

    def clear(self, target: int, size: int) -> None:
        """Fill memory with zeros."""
        self._call(self._api.cudaMemsetAsync, target, 0, size, self.stream)

    def clear_rows(self, target: int, pitch: int, width: int, rows: int) -> None:
        """Fill ``rows`` rows of ``width`` bytes, which start ``pitch`` bytes apart, with zeros."""
        self._call(self._api.cudaMemset2DAsync, target, pitch, 0, width, rows, self.stream)

    def synchronize(self) -> None:
        """Wait for all work in the stream."""
        self._call(self._api.cudaStreamSynchronize, self.stream)

    def capture_graph(self, work: Callable[[], None]) -> int:
        """A CUDA graph of what ``work`` puts into the stream. Capturing does not run it."""
        api = self._api
        self._call(api.cudaStreamBeginCapture, self.stream, api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        finally:  # the stream must leave its capture state even if ``work`` raised
            status, graph = api.cudaStreamEndCapture(self.stream)
        if status != self._ok:
            raise EngineFailure(f"a pass could not be recorded as a CUDA graph: {status.name} — please report the model and the GPU")
        try:
            return int(self._call(api.cudaGraphInstantiate, graph, 0))
        finally:
            self._call(api.cudaGraphDestroy, graph)

    def launch_graph(self, graph: int) -> None:
        """Run a captured graph."""
        self._call(self._api.cudaGraphLaunch, graph, self.stream)

    def destroy_graph(self, graph: int) -> None:
        """Free a captured graph."""
        self._call(self._api.cudaGraphExecDestroy, graph)

    def record_event(self) -> int:
        """A new event at the current end of the stream, for ``elapsed_ms``."""
        event = int(self._call(self._api.cudaEventCreate))
        self._call(self._api.cudaEventRecord, event, self.stream)
        return event

    def elapsed_ms(self, first: int, second: int) -> float:
        """GPU milliseconds between two events. Waits for the second and frees both."""
        self._call(self._api.cudaEventSynchronize, second)
        elapsed = float(self._call(self._api.cudaEventElapsedTime, first, second))
        for event in (first, second):
            self._call(self._api.cudaEventDestroy, event)
        return elapsed

    def close(self) -> None:
        """Destroy the stream."""
        self._call(self._api.cudaStreamDestroy, self.stream)
