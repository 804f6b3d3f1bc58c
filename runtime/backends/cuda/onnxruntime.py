"""ONNX Runtime on a GPU: the same graphs, bound to the same device memory, in the same stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from ...errors import EngineDirError, EngineFailure
from ...manifest.graphs import Graph
from ..base import Buffer, PreparedCalls
from .bindings import Bound, DeviceCall, bind
from .driver import Cuda
from .memory import DeviceMemory

MAX_CALLS = 1024
PROVIDER, DEVICE = "CUDAExecutionProvider", "cuda"
# What must never run on the host unnoticed. Shapes and constants are computed there on purpose.
_HEAVY = ("Attention", "Gemm", "MatMul", "MatMulInteger", "MatMulNBits", "TensorScatter", "RMSNormalization", "RotaryEmbedding")


@dataclass(eq=False)
class OrtCudaCall(DeviceCall):
    """An I/O binding to addresses on the device."""

    _session: Any
    _binding: Any
    _options: Any
    _memory: DeviceMemory
    _turn: Lock

    def run(self) -> None:
        if self.bindings.block.size:
            self._memory.upload(self.bindings.address, self.bindings.block)
        self._memory.ran()
        try:
            with self._turn:
                self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise EngineFailure(f"a pass failed inside ONNX Runtime: {error} — run resps-run with -vv for details") from error


class OrtCudaEngine(PreparedCalls):
    """One graph on the GPU, in a session that engines of forks run too, in ``turn``: a session has one stream."""

    def __init__(
        self,
        session: Any,
        options: Any,
        turn: Lock,
        graph: Graph,
        buffers: Mapping[str, Buffer],
        limits: Mapping[str, int],
        memory: DeviceMemory,
    ) -> None:
        super().__init__(MAX_CALLS)
        self._session, self._options, self._turn = session, options, turn
        self._graph, self._buffers, self._limits, self._memory = graph, dict(buffers), limits, memory

    def _bind(self, names: Mapping[str, str], sizes: Mapping[str, int]) -> OrtCudaCall:
        bindings = bind(self._graph, self._memory, self._buffers, self._limits, names, sizes)
        binding = self._session.io_binding()
        for name, bound in bindings.bound_inputs.items():
            binding.bind_input(name, *_place(bound))
        for name, bound in bindings.bound_outputs.items():
            binding.bind_output(name, *_place(bound))
        return OrtCudaCall(bindings, self._session, binding, self._options, self._memory, self._turn)

    def close(self) -> None:
        """May be repeated."""
        self._drop()
        self._buffers.clear()
        self._session = None


def _place(bound: Bound) -> tuple[Any, ...]:
    return DEVICE, 0, bound.buffer.dtype.type, bound.shape, bound.buffer.address


def open_session(file: Path, cuda: Cuda) -> tuple[Any, Any]:
    """The graph with its weights, and how to run it. Raises EngineDirError rather than computing on the host."""
    import onnxruntime

    if PROVIDER not in onnxruntime.get_available_providers():
        raise EngineDirError(
            f"this onnxruntime {onnxruntime.__version__} has no CUDA — pip uninstall onnxruntime, then pip install 'resps[gpu]'"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    provider = (PROVIDER, {"device_id": "0", "user_compute_stream": str(cuda.stream)})
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=[provider, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own unrelated classes
        raise EngineDirError(f"ONNX Runtime cannot load {file} on the GPU: {error} — check its CUDA and cuDNN versions") from error
    _expect_on_device(session, file)
    run = onnxruntime.RunOptions()
    run.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the stream keeps the order; reading waits
    return session, run


def _expect_on_device(session: Any, file: Path) -> None:
    """onnxruntime falls back to the CPU without a word, for a whole session or for single nodes."""
    if session.get_providers()[0] != PROVIDER:
        raise EngineDirError(f"ONNX Runtime would run {file} on the CPU: its CUDA provider did not start — check CUDA and cuDNN versions")
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != PROVIDER]
    strays = sorted({node.op_type for part in parts for node in part.get_nodes() if node.op_type in _HEAVY})
    if strays:
        raise EngineDirError(f"ONNX Runtime has no CUDA kernels for {', '.join(strays)} in {file} — use a newer onnxruntime-gpu")
