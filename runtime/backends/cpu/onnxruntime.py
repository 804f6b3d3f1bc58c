"""ONNX Runtime backend: I/O binding on buffers that numpy sees too, nothing allocated or bound per pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from ...errors import EngineDirError, EngineFailure
from ...manifest.graphs import Graph
from ..base import PreparedCalls
from .huge_pages import huge_pages_for_new_memory

MAX_CALLS = 64  # prepared calls kept per engine


@dataclass(frozen=True, eq=False)
class BoundTensor:
    """The front of a buffer in one shape, as numpy and as ONNX Runtime see it."""

    view: np.ndarray
    value: Any


@dataclass(frozen=True, eq=False)
class OrtCall:
    """An I/O binding whose tensors alias ``inputs`` and ``outputs``."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    _session: Any
    _binding: Any
    _tensors: Sequence[BoundTensor]  # for as long as they live, other calls use them too

    def run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise EngineFailure(f"a pass failed inside ONNX Runtime: {error} — run resps-run with -vv for details") from error


class OrtEngine(PreparedCalls):
    """One graph on the CPU, in a session that other engines may run too.

    Every tensor has one flat buffer, of which a call uses the front. ``shared`` buffers (the KV cache) are the caller's; the others
    are made here, sized by ``limits`` for the largest call.
    """

    def __init__(self, session: Any, graph: Graph, limits: Mapping[str, int], shared: Mapping[str, np.ndarray]) -> None:
        super().__init__(MAX_CALLS)
        self._session, self._graph, self._limits = session, graph, limits
        self._buffers: dict[str, np.ndarray] = dict(shared)
        # By buffer and shape. Calls with the same span see the same cache: 60 tensors of 30 layers, most of what a call takes.
        self._tensors: WeakValueDictionary[tuple[int, tuple[int, ...]], BoundTensor] = WeakValueDictionary()

    def _bind(self, names: Mapping[str, str], sizes: Mapping[str, int]) -> OrtCall:
        binding, used = self._session.io_binding(), []
        inputs: dict[str, np.ndarray] = {}
        outputs: dict[str, np.ndarray] = {}
        sides = (
            (self._graph.inputs, inputs, binding.bind_ortvalue_input),
            (self._graph.outputs, outputs, binding.bind_ortvalue_output),
        )
        for tensors, views, bind in sides:
            for name, tensor in tensors.items():
                shape = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape)
                made = self._tensor(names.get(name, name), tensor.dtype, tensor.shape, shape)
                used.append(made)
                views[name] = made.view
                bind(name, made.value)
        return OrtCall(inputs, outputs, self._session, binding, used)

    def _tensor(self, name: str, dtype: str, largest: tuple[int | str, ...], shape: tuple[int, ...]) -> BoundTensor:
        buffer = self._buffer(name, dtype, largest)
        made = self._tensors.get((id(buffer), shape))
        if made is None:
            view = buffer[: int(np.prod(shape))].reshape(shape)
            made = self._tensors[id(buffer), shape] = BoundTensor(view, _ort_value(view))
        return made

    def _buffer(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> np.ndarray:
        if name not in self._buffers:
            size = int(np.prod([self._limits[dim] if isinstance(dim, str) else dim for dim in shape]))
            self._buffers[name] = np.zeros(size, dtype)
        return self._buffers[name]

    def close(self) -> None:
        self._drop()
        self._buffers.clear()
        self._session = None


def _ort_value(array: np.ndarray) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def open_session(file: Path, threads: int, profile: Path | None = None) -> Any:
    """The graph with its weights; with one thread it computes on the thread that calls. ``profile``: ONNX Runtime's profiler notes every
    node in a file whose name begins so, which the session's `end_profiling` gives. Raises EngineDirError."""
    try:
        import onnxruntime
    except ImportError:
        raise EngineDirError("ONNX Runtime is not installed — pip install 'resps[cpu]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Every graph has its own worker threads. Without this they go on spinning after a run, on the cores that the next graph needs: a cycle
    # of a small tree took 67 ms instead of 31 (docs/decisions.md, "Runtime").
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # 8-bit integer products with int32 sums: still one result per row whatever the other rows are, and several times faster than level 0.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        with huge_pages_for_new_memory():
            return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own unrelated classes
        raise EngineDirError(f"ONNX Runtime cannot load {file}: {error} — rebuild it: resps-export --force") from error
