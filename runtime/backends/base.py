"""The protocols of a backend: Memory holds buffers, an Engine is a loaded graph, a Call is a graph bound to buffers for fixed sizes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..manifest.schema import Manifest
from .lane_cache import LanesEngine, Pages

Buffer = Any
"""A flat piece of a Memory: a numpy array on the host, an address range on a device."""


def dtype_of(name: str) -> np.dtype[Any]:
    """The numpy dtype with the manifest's name. bfloat16 comes from ml_dtypes, as numpy does not have it."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


class Memory(Protocol):
    """Allocates and copies buffers. Sizes and offsets are in elements."""

    @property
    def on_host(self) -> bool:
        """Whether buffers are numpy arrays, so that the host reads what an engine wrote without a copy."""

    def zeros(self, size: int, dtype: str) -> Buffer:
        """A new buffer of zeros."""

    def readback_buffers(self, sizes: Mapping[str, tuple[int, str]]) -> dict[str, Buffer]:
        """New buffers that the host reads in every round, from (size, dtype) by name. They are adjacent: the first read after a run copies
        all of them to the host at once. May be called once."""

    def write(self, buffer: Buffer, values: np.ndarray) -> None:
        """Copy ``values`` to the start of a buffer."""

    def read(self, buffer: Buffer, shape: tuple[int, ...]) -> np.ndarray:
        """The start of a buffer, after waiting for all runs. Valid until the next run."""

    def copy(self, source: Buffer, target: Buffer, start: int, size: int) -> None:
        """target[start : start + size] = source[:size]."""


class DeviceOutputs(Mapping[str, np.ndarray]):
    """Outputs on a device. Each access waits for the run and copies the tensor to the host."""

    def element(self, name: str, row: int, column: int) -> float:
        """Copy a single number of a tensor [1, rows, columns]."""
        raise NotImplementedError

    def row(self, name: str, row: int) -> np.ndarray:
        """Copy one row of a tensor [1, rows, columns]: [columns]."""
        raise NotImplementedError


class Call(Protocol):
    """A graph prepared for fixed sizes. Fill ``inputs``, ``run()``, read ``outputs``; the buffers are the same every time."""

    @property
    def inputs(self) -> Mapping[str, np.ndarray]:
        """Arrays to fill before a run. On a device, without the tensors that other graphs write."""

    @property
    def outputs(self) -> Mapping[str, np.ndarray]:
        """Arrays to read after a run. On a device, each access waits for the run and copies."""

    def run(self) -> None:
        """Execute the graph; on a device, start it. Raises EngineFailure."""


class Engine(Protocol):
    """A loaded graph."""

    def prepare(self, names: Mapping[str, str] | None = None, /, **sizes: int) -> Call:
        """The call for these values of the graph's symbolic dimensions, built on first use and then reused.

        ``names``: the buffers of tensors whose buffer does not have the tensor's own name.
        """

    def close(self) -> None:
        """Free everything. May be called repeatedly."""


class PreparedCalls:
    """Keeps up to ``max_calls`` calls of a graph, by sizes and names, and frees the least recently used one to make room.

    Freeing one at a time matters: a server that needs more sizes than are kept would otherwise rebuild all of them again and again, and its
    memory would rise and fall with it.
    """

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        self._calls: OrderedDict[tuple[tuple[tuple[str, int], ...], tuple[tuple[str, str], ...]], Call] = OrderedDict()

    def prepare(self, names: Mapping[str, str] | None = None, /, **sizes: int) -> Call:
        names = names or {}
        key = (tuple(sizes.items()), tuple(names.items()))
        call = self._calls.get(key)
        if call is not None:
            self._calls.move_to_end(key)
            return call
        if len(self._calls) >= self._max_calls:
            self._free(self._calls.popitem(last=False)[1])
        call = self._calls[key] = self._bind(names, sizes)
        return call

    def _bind(self, names: Mapping[str, str], sizes: Mapping[str, int]) -> Call:
        raise NotImplementedError

    def _free(self, call: Call) -> None:
        """Free what a call holds outside Python's memory."""

    def _free_all(self) -> None:
        while self._calls:
            self._free(self._calls.popitem()[1])


@dataclass(frozen=True)
class CacheLayout:
    """The shape of a layer's keys or values in a graph: [parts, heads, span, width]. The CPU's quantized graphs split the values of a head
    into several parts; all others have one part."""

    parts: int
    heads: int
    width: int
    dtype: np.dtype

    @property
    def planes(self) -> int:
        """Number of adjacent [span, width] arrays."""
        return self.parts * self.heads


class Cache(Protocol):
    """Keys and values of one model. Slots below ``length`` are committed; engines see ``span`` of ``capacity`` slots."""

    @property
    def length(self) -> int:
        """Committed slots."""

    @property
    def span(self) -> int:
        """Slots that a pass may access now."""

    @property
    def capacity(self) -> int:
        """The largest span."""

    def tensors(self) -> Mapping[str, Buffer]:
        """Buffers by the names of graph inputs and outputs. Engines update them in place."""

    def span_for(self, slots: int) -> int:
        """The span to reserve when ``slots`` are needed."""

    def spans(self) -> Sequence[int]:
        """Spans to prepare for before the first request. On a device these are all possible spans, as each needs its own CUDA graphs."""

    def reserve(self, span: int) -> None:
        """Grow to ``span`` slots; committed rows keep their values. Raises ValueError for a smaller span or one above ``capacity``."""

    def commit(self, path: Sequence[int]) -> None:
        """Commit the rows ``path`` of the last pass (ascending, starting with row 0): move them to follow the committed slots."""

    def truncate(self, length: int) -> None:
        """Keep only the first ``length`` slots, and shrink the span to fit. Raises ValueError for more than are committed."""

    def rows(self) -> np.ndarray:
        """The committed part, [layers, 2, 1, Hkv, length, D]; a view or a copy."""


class Backend(Protocol):
    """Memory and engines of one engine directory. ``close`` frees everything."""

    @property
    def memory(self) -> Memory:
        """The memory that all engines share."""

    def engine(self, name: str, shared: Mapping[str, Buffer], limits: Mapping[str, int]) -> Engine:
        """Load a graph. ``shared``: buffers by name. ``limits``: the largest value of each symbolic dimension. Raises EngineDirError."""

    def cache(self, layers: int, keys: CacheLayout, values: CacheLayout, capacity: int) -> Cache:
        """An empty cache of ``capacity`` slots, with the layouts of its keys and values."""

    def lanes(self, name: str, lanes: int, slots: int) -> tuple[LanesEngine, Pages]:
        """Load a graph with lanes, over empty pages for ``lanes`` lanes. ``slots``: of a lane with a full context, unless the graph says
        it. Raises EngineDirError."""

    def fork(self, manifest: Manifest | None = None) -> Backend:
        """A Backend over the same weights, for another thread. ``manifest``: the same one with another tuning. Raises GpuMemoryError if the
        GPU has no room for it."""

    def close(self) -> None:
        """Free what belongs to this Backend; closing the last fork frees the weights. May be called repeatedly."""
