"""The few CUDA calls that the GPU backends need, over NVIDIA's own binding. The only module that knows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import EngineDirError, EngineFailure


@dataclass(frozen=True)
class Gpu:
    """``compute_capability`` as "9.0"; memory in bytes."""

    name: str
    compute_capability: str
    memory: int


class Cuda:
    """Memory, copies, one stream and its graphs on the first GPU. Sizes in bytes, addresses as integers.

    Raises EngineDirError when there is no GPU to use; every call raises EngineFailure, with CUDA's own words.
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
        """The device."""
        found = self._call(self._api.cudaGetDeviceProperties, 0)
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        return Gpu(name, f"{found.major}.{found.minor}", int(found.totalGlobalMem))

    def free_memory(self) -> int:
        """What other processes and this one leave."""
        status, free, _ = self._api.cudaMemGetInfo()
        if status != self._ok:
            raise EngineFailure(f"the GPU does not tell its free memory: {status.name} — check nvidia-smi")
        return int(free)

    def allocate(self, size: int) -> int:
        return int(self._call(self._api.cudaMalloc, size))

    def free(self, address: int) -> None:
        self._call(self._api.cudaFree, address)

    def allocate_pinned(self, size: int) -> int:
        """Host memory that copies need not stage."""
        return int(self._call(self._api.cudaMallocHost, size))

    def free_pinned(self, address: int) -> None:
        self._call(self._api.cudaFreeHost, address)

    def copy(self, target: int, source: int, size: int) -> None:
        """Between any two places, in the stream's order. Host memory must be pinned and stay untouched until then."""
        self._call(self._api.cudaMemcpyAsync, target, source, size, self._kind, self.stream)

    def copy_rows(self, target: int, source: int, pitch: int, width: int, rows: int) -> None:
        """``rows`` pieces of ``width`` bytes, ``pitch`` apart on both sides."""
        self._call(self._api.cudaMemcpy2DAsync, target, pitch, source, pitch, width, rows, self._kind, self.stream)

    def clear(self, target: int, size: int) -> None:
        """Zero a piece of memory."""
        self._call(self._api.cudaMemsetAsync, target, 0, size, self.stream)

    def clear_rows(self, target: int, pitch: int, width: int, rows: int) -> None:
        """Zero ``rows`` pieces of ``width`` bytes, ``pitch`` apart."""
        self._call(self._api.cudaMemset2DAsync, target, pitch, 0, width, rows, self.stream)

    def synchronize(self) -> None:
        """Wait for everything in the stream."""
        self._call(self._api.cudaStreamSynchronize, self.stream)

    def record(self, work: Callable[[], None]) -> int:
        """A graph of what ``work`` puts into the stream, which is recorded and not run."""
        api = self._api
        self._call(api.cudaStreamBeginCapture, self.stream, api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        finally:  # whatever happened, the stream must leave its recording state
            status, graph = api.cudaStreamEndCapture(self.stream)
        if status != self._ok:
            raise EngineFailure(f"a pass could not be recorded as a CUDA graph: {status.name} — please report the model and the GPU")
        try:
            return int(self._call(api.cudaGraphInstantiate, graph, 0))
        finally:
            self._call(api.cudaGraphDestroy, graph)

    def launch(self, graph: int) -> None:
        """Run a recorded graph."""
        self._call(self._api.cudaGraphLaunch, graph, self.stream)

    def discard(self, graph: int) -> None:
        """Free a recorded graph."""
        self._call(self._api.cudaGraphExecDestroy, graph)

    def mark(self) -> int:
        """A point in the stream's time, for ``milliseconds``."""
        event = int(self._call(self._api.cudaEventCreate))
        self._call(self._api.cudaEventRecord, event, self.stream)
        return event

    def milliseconds(self, first: int, second: int) -> float:
        """GPU time between two marks, which are freed; waits for the second."""
        self._call(self._api.cudaEventSynchronize, second)
        elapsed = float(self._call(self._api.cudaEventElapsedTime, first, second))
        for event in (first, second):
            self._call(self._api.cudaEventDestroy, event)
        return elapsed

    def close(self) -> None:
        """Free the stream."""
        self._call(self._api.cudaStreamDestroy, self.stream)
