"""CpuBackend: every graph of an engine directory in an ONNX Runtime session on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ...errors import EngineDirError
from ...manifest.schema import Manifest
from ..base import Buffer, CacheLayout, dtype_of
from .kv import KVCache
from .memory import HostMemory
from .onnxruntime import OrtEngine, open_session
from .paged_cache import PagedCache, pages_of
from .paged_engine import PagedEngine
from .processor import processor_name
from .sums import adds_in_order, adds_pages_in_order, adds_pairs_exactly

_WITH_WEIGHTS = ("target", "target_lanes", "fuse", "draft", "draft_lanes")  # all other graphs are too small to gain from a second thread


class CpuBackend:
    """A Backend on the CPU. Graphs with weights run on ``threads`` threads, all others on one.

    Sessions hold the weights and may run in several threads at once, so forks share them (``sessions``). Bindings, buffers and caches
    belong to each fork.
    """

    def __init__(self, directory: Path, manifest: Manifest, threads: int, sessions: dict[str, Any] | None = None) -> None:
        if manifest.tensorrt is not None:
            raise EngineDirError(f"{directory} is for a GPU — for the CPU export again without --backend tensorrt")
        if sessions is None:
            _expect_exact(manifest, threads)
        self._directory, self._manifest, self._threads = directory, manifest, threads
        self._sessions: dict[str, Any] = {} if sessions is None else sessions
        self.memory = HostMemory()
        self._cleanup = ExitStack()

    def engine(self, name: str, shared: Mapping[str, Buffer], limits: Mapping[str, int]) -> OrtEngine:
        graph = self._manifest.graph(name)
        engine = OrtEngine(self._session(name), graph, limits, shared)
        self._cleanup.callback(engine.close)
        return engine

    def lanes(self, name: str, lanes: int, slots: int) -> tuple[PagedEngine, PagedCache]:
        graph = self._manifest.graph(name)
        keys = [tensor for each, tensor in graph.inputs.items() if each.endswith(".key")]
        _, heads, _, width = keys[0].shape
        cache = PagedCache(len(keys), int(heads), int(width), dtype_of(keys[0].dtype), lanes * pages_of(slots))
        engine = PagedEngine(self._session(name), graph, cache)
        self._cleanup.callback(engine.close)
        return engine, cache

    def _session(self, name: str) -> Any:
        graph = self._manifest.graph(name)
        if name not in self._sessions:
            threads = self._threads if name in _WITH_WEIGHTS else 1
            huge_pages = not self._manifest.quantized  # integers gain nothing from them
            self._sessions[name] = open_session(self._directory / (graph.fused or graph.file), threads, huge_pages=huge_pages)
        return self._sessions[name]

    def cache(self, layers: int, keys: CacheLayout, values: CacheLayout, capacity: int) -> KVCache:
        return KVCache(layers, keys, values, capacity, self._manifest.limits.span_step)

    def fork(self, manifest: Manifest | None = None) -> CpuBackend:
        if manifest is None:
            return CpuBackend(self._directory, self._manifest, self._threads, self._sessions)
        untuned = {name: session for name, session in self._sessions.items() if name in manifest.graphs}  # networks keep their names
        return CpuBackend(self._directory, manifest, self._threads, untuned)

    def close(self) -> None:
        self._cleanup.close()
        self._sessions = {}  # forks keep the sessions they share


def _expect_exact(manifest: Manifest, threads: int) -> None:
    """Raises EngineDirError if a quantized engine came from a processor that adds in another way: its answers could depend on the draft."""
    if not manifest.quantized:
        return
    ordered = adds_in_order(threads) and ("target_lanes" not in manifest.graphs or adds_pages_in_order(manifest.shape.head_dim, threads))
    if not ordered or (manifest.exact_pairs and not adds_pairs_exactly()):
        raise EngineDirError(
            f"the engine was exported on another kind of processor, and this one ({processor_name()}) adds its products in another way — "
            f"export again here: {manifest.rebuild}"
        )
