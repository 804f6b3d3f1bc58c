"""Graphs in ONNX Runtime on the CPU, with I/O binding to numpy arrays: once a call is prepared, a pass allocates and binds nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from ...errors import EngineDirError, EngineFailure
from ...manifest.graphs import Graph
from ..base import PreparedCalls
from ..ort_process import import_onnxruntime, keep_in_forks
from .huge_pages import huge_pages_for_new_memory

MAX_CALLS = 64  # prepared calls kept per engine


@dataclass(frozen=True, eq=False)
class BoundTensor:
    """The front of a buffer in one shape, as a numpy array and as an OrtValue over the same memory."""

    view: np.ndarray
    value: Any


@dataclass(frozen=True, eq=False)
class OrtCall:
    """An I/O binding whose tensors alias ``inputs`` and ``outputs``."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    _session: Any
    _binding: Any
    _tensors: Sequence[BoundTensor]  # keeps them alive, so that other calls can share them

    def run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise EngineFailure(f"a pass failed inside ONNX Runtime: {error} — run resps-run with -vv for details") from error


class OrtEngine(PreparedCalls):
    """One graph in a session, which engines of other forks may run too.

    Every tensor has one flat buffer, and a call uses the front of it. ``shared``: the caller's buffers (the KV cache among them), by name.
    The engine allocates all others, with the sizes in ``limits``.
    """

    def __init__(self, session: Any, graph: Graph, limits: Mapping[str, int], shared: Mapping[str, np.ndarray]) -> None:
        super().__init__(MAX_CALLS)
        self._session, self._graph, self._limits = session, graph, limits
        self._buffers: dict[str, np.ndarray] = dict(shared)
        # By buffer and shape. Calls with the same span share the cache's tensors, which are most of a call's memory (30 layers have 60).
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
                bound = self._tensor(names.get(name, name), tensor.dtype, tensor.shape, shape)
                used.append(bound)
                views[name] = bound.view
                bind(name, bound.value)
        return OrtCall(inputs, outputs, self._session, binding, used)

    def _tensor(self, name: str, dtype: str, largest: tuple[int | str, ...], shape: tuple[int, ...]) -> BoundTensor:
        buffer = self._buffer(name, dtype, largest)
        bound = self._tensors.get((id(buffer), shape))
        if bound is None:
            view = buffer[: int(np.prod(shape))].reshape(shape)
            bound = self._tensors[id(buffer), shape] = BoundTensor(view, _ort_value(view))
        return bound

    def _buffer(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> np.ndarray:
        if name not in self._buffers:
            size = int(np.prod([self._limits[dim] if isinstance(dim, str) else dim for dim in shape]))
            self._buffers[name] = np.zeros(size, dtype)
        return self._buffers[name]

    def close(self) -> None:
        self._free_all()
        self._buffers.clear()
        self._session = None


def _ort_value(array: np.ndarray) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def open_session(file: Path, threads: int, profile: Path | None = None, huge_pages: bool = True) -> Any:
    """An InferenceSession of a graph. With one thread it computes on the caller's thread. Raises EngineDirError.

    ``profile``: prefix of the file to which ONNX Runtime's profiler writes every node; the session's `end_profiling` returns the file's
    name. ``huge_pages``: whether to move the weights to huge pages. It takes a second for half a gigabyte, and minutes for seven.
    """
    try:
        onnxruntime = import_onnxruntime()
    except ImportError:
        raise EngineDirError("ONNX Runtime is not installed — pip install 'resps[cpu]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Every session has its own worker threads. Without this setting they keep spinning after a run, on the cores that the next graph needs:
    # a round with a small tree took 67 ms instead of 31 (docs/decisions.md, "Runtime").
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Level 4: 8-bit integer products with int32 sums. A row's result still does not depend on other rows, and it is several times faster
    # than level 0.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    if not huge_pages:
        # All threads pack the weights instead of one, which halves the loading time of integers (docs/lab/real_sizes.md). ONNX Runtime has
        # this since 1.32 and ignores it before.
        options.add_session_config_entry("session.prepack.enable_parallel", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        with huge_pages_for_new_memory() if huge_pages else nullcontext():
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own unrelated classes
        raise EngineDirError(f"ONNX Runtime cannot load {file}: {error} — rebuild it: resps-export --force") from error
    keep_in_forks(session)
    return session
