"""A graph with lanes in an ONNX Runtime session. Every pass has its own sizes, so nothing is prepared but the cache's tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import EngineFailure
from ...manifest.graphs import Graph
from ..lane_cache import LaneRows, row_axis, shares
from .paged_cache import PagedCache
from .paged_inputs import pages_bound, pass_inputs, with_chunk

_MAX_BINDINGS = 32  # ranges of pages whose tensors are kept


class PagedEngine:
    """Runs a graph over a range of the cache's pages, which it updates in place. For one thread at a time."""

    def __init__(self, session: Any, graph: Graph, cache: PagedCache) -> None:
        self._session, self._cache = session, cache
        self.takes_chunks = "chunk" in graph.inputs
        self._outputs = {name: tensor for name, tensor in graph.outputs.items() if not name.startswith("present.")}
        self._buffers: dict[str, np.ndarray] = {}
        self._bound: OrderedDict[tuple[int, int], dict[str, Any]] = OrderedDict()

    def run(
        self, lanes: Sequence[LaneRows], hidden: np.ndarray | None = None, width: int = 0, chunk_last: bool = False
    ) -> list[dict[str, np.ndarray]]:
        from onnxruntime import OrtValue

        pages, heads = pages_bound(lanes), self._cache.heads
        inputs = with_chunk(lanes, pages, heads, chunk_last) if self.takes_chunks else pass_inputs(lanes, pages, heads)
        if hidden is not None:
            inputs |= {"hidden": np.ascontiguousarray(hidden)[None], "beam": np.arange(width)}
        sizes = {"N": inputs["tokens"].shape[1], "r": len(inputs["rows"]), "k": width}
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
        for name, value in self._cache_values(pages).items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past", "present"), value)
        outputs = {}
        for name, tensor in self._outputs.items():
            view = self._buffer(name, tensor.dtype, tuple(sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape))
            outputs[name] = view, *row_axis(tensor)
            binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(view))
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise EngineFailure(f"a pass failed inside ONNX Runtime: {error} — run resps-run with -vv for details") from error
        return [
            {name: view[:, own[dim]] if axis else view[own[dim]] for name, (view, axis, dim) in outputs.items()} for own in shares(lanes)
        ]

    def _cache_values(self, pages: range) -> dict[str, Any]:
        from onnxruntime import OrtValue

        key = pages.start, pages.stop
        if key not in self._bound:
            if len(self._bound) >= _MAX_BINDINGS:
                self._bound.popitem(last=False)
            self._bound[key] = {name: OrtValue.ortvalue_from_numpy(view) for name, view in self._cache.tensors(pages).items()}
        self._bound.move_to_end(key)
        return self._bound[key]

    def _buffer(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape))
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = np.empty(size, dtype)
        return self._buffers[name][:size].reshape(shape)

    def close(self) -> None:
        """Free everything. May be called repeatedly."""
        self._bound.clear()
        self._buffers.clear()
        self._session = None
