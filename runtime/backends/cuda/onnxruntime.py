"""Graphs in ONNX Runtime with its CUDA provider, with I/O binding to device memory and in the backend's stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from ...errors import EngineDirError, EngineFailure
from ...manifest.graphs import Graph
from ..base import Buffer, PreparedCalls
from ..ort_process import import_onnxruntime, keep_in_forks
from .bindings import DeviceCall, DeviceTensor, bind
from .driver import Cuda
from .memory import DeviceMemory

MAX_CALLS = 1024  # prepared calls kept per engine
PROVIDER, DEVICE = "CUDAExecutionProvider", "cuda"
# Operators that must not fall back to the host. Shapes and constants are computed there on purpose.
_GPU_OPERATORS = ("Attention", "Gemm", "MatMul", "MatMulInteger", "MatMulNBits", "TensorScatter", "RMSNormalization", "RotaryEmbedding")


@dataclass(eq=False)
class OrtCudaCall(DeviceCall):
    """An I/O binding to device addresses."""

    _session: Any
    _binding: Any
    _options: Any
    _memory: DeviceMemory
    _session_lock: Lock

    def run(self) -> None:
        if self.bindings.host_block.size:
            self._memory.upload(self.bindings.block_address, self.bindings.host_block)
        self._memory.invalidate_readback()
        try:
            with self._session_lock:
                self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise EngineFailure(f"a pass failed inside ONNX Runtime: {error} — run resps-run with -vv for details") from error


class OrtCudaEngine(PreparedCalls):
    """One graph in a session, which engines of other forks run too. They take turns by ``session_lock``, as a session has one stream.
    ``limits``: the largest value of each symbolic dimension."""

    def __init__(
        self,
        session: Any,
        options: Any,
        session_lock: Lock,
        graph: Graph,
        buffers: Mapping[str, Buffer],
        limits: Mapping[str, int],
        memory: DeviceMemory,
    ) -> None:
        super().__init__(MAX_CALLS)
        self._session, self._options, self._session_lock = session, options, session_lock
        self._graph, self._buffers, self._limits, self._memory = graph, dict(buffers), limits, memory

    def _bind(self, names: Mapping[str, str], sizes: Mapping[str, int]) -> OrtCudaCall:
        bindings = bind(self._graph, self._memory, self._buffers, self._limits, names, sizes)
        binding = self._session.io_binding()
        for name, tensor in bindings.device_inputs.items():
            binding.bind_input(name, *_bind_arguments(tensor))
        for name, tensor in bindings.device_outputs.items():
            binding.bind_output(name, *_bind_arguments(tensor))
        return OrtCudaCall(bindings, self._session, binding, self._options, self._memory, self._session_lock)

    def close(self) -> None:
        """Free everything. May be called repeatedly."""
        self._free_all()
        self._buffers.clear()
        self._session = None


def _bind_arguments(tensor: DeviceTensor) -> tuple[Any, ...]:
    return DEVICE, 0, tensor.buffer.dtype.type, tensor.shape, tensor.buffer.address


def open_session(file: Path, cuda: Cuda) -> tuple[Any, Any]:
    """An InferenceSession of a graph and its RunOptions. Raises EngineDirError, also if the graph would run on the host."""
    onnxruntime = import_onnxruntime()
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
    keep_in_forks(session)
    _check_on_gpu(session, file)
    run = onnxruntime.RunOptions()
    run.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the stream orders the work, and reads wait
    return session, run


def _check_on_gpu(session: Any, file: Path) -> None:
    """Raises EngineDirError for a fallback to the CPU, of the session or of a node. ONNX Runtime falls back without an error."""
    if session.get_providers()[0] != PROVIDER:
        raise EngineDirError(f"ONNX Runtime would run {file} on the CPU: its CUDA provider did not start — check CUDA and cuDNN versions")
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != PROVIDER]
    on_host = sorted({node.op_type for part in parts for node in part.get_nodes() if node.op_type in _GPU_OPERATORS})
    if on_host:
        raise EngineDirError(f"ONNX Runtime has no CUDA kernels for {', '.join(on_host)} in {file} — use a newer onnxruntime-gpu")
