"""What the runtime asks of an inference backend: memory, and graphs that run in it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from .kv import Cache, CacheLayout

Buffer = Any
"""A flat piece of a Memory: a numpy array on the host, an address range on a device."""


def dtype_of(name: str) -> np.dtype[Any]:
    """The manifest's name of a type. bfloat16 is not numpy's own."""
    if name == "bfloat16":
        import ml_dtypes

        special: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return special
    return np.dtype(name)


class Memory(Protocol):
    """Where tensors lie. Sizes and offsets count elements."""

    @property
    def on_host(self) -> bool:
        """Whether buffers are numpy arrays, so that what an engine wrote is there to be read."""

    def zeros(self, size: int, dtype: str) -> Buffer:
        """A new buffer."""

    def mailbox(self, sizes: Mapping[str, tuple[int, str]]) -> dict[str, Buffer]:
        """Buffers that the host reads every cycle: reading the first of them after a run brings all of them, in one copy."""

    def write(self, buffer: Buffer, values: np.ndarray) -> None:
        """Put ``values`` at the buffer's beginning."""

    def read(self, buffer: Buffer, shape: tuple[int, ...]) -> np.ndarray:
        """The buffer's beginning, when everything that runs is done. Valid until the next run."""

    def copy(self, source: Buffer, target: Buffer, start: int, size: int) -> None:
        """target[start : start + size] = source[:size]."""


class DeviceOutputs(Mapping[str, np.ndarray]):
    """Outputs that lie on a device: each is copied as a whole when it is looked at, or one number of it."""

    def element(self, name: str, row: int, column: int) -> float:
        """One number of a tensor [1, rows, columns]."""
        raise NotImplementedError


class Call(Protocol):
    """One graph prepared for fixed sizes. Fill ``inputs``, ``run()``, read ``outputs``: the same buffers every time."""

    @property
    def inputs(self) -> Mapping[str, np.ndarray]:
        """To be filled before a run. On a device, tensors that other graphs write are not among them."""

    @property
    def outputs(self) -> Mapping[str, np.ndarray]:
        """To be read after a run. On a device, reading waits for the run and copies."""

    def run(self) -> None:
        """Execute, or on a device begin to; raises EngineFailure."""


class Engine(Protocol):
    """A loaded graph."""

    def prepare(self, names: Mapping[str, str] | None = None, /, **sizes: int) -> Call:
        """The call for these values of the graph's symbolic dimensions; made once, then reused.

        A tensor lies in the buffer of its own name, unless ``names`` says in which.
        """

    def close(self) -> None:
        """Free everything. May be repeated."""


class PreparedCalls:
    """Keeps the calls of one graph by their sizes and names: at most ``most``, without those that were not asked for the longest.

    One by one, not all at once: a service that asks for more sizes than are kept would otherwise go on making all of them again, and its
    memory would go up and down with it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._calls: OrderedDict[tuple[tuple[tuple[str, int], ...], tuple[tuple[str, str], ...]], Call] = OrderedDict()

    def prepare(self, names: Mapping[str, str] | None = None, /, **sizes: int) -> Call:
        names = names or {}
        key = (tuple(sizes.items()), tuple(names.items()))
        call = self._calls.get(key)
        if call is not None:
            self._calls.move_to_end(key)
            return call
        if len(self._calls) >= self._most:
            self._free(self._calls.popitem(last=False)[1])
        call = self._calls[key] = self._bind(names, sizes)
        return call

    def _bind(self, names: Mapping[str, str], sizes: Mapping[str, int]) -> Call:
        raise NotImplementedError

    def _free(self, call: Call) -> None:
        """What a call holds beside itself."""

    def _drop(self) -> None:
        while self._calls:
            self._free(self._calls.popitem()[1])


class Backend(Protocol):
    """Memory and engines of one directory. Everything is freed by ``close``."""

    @property
    def memory(self) -> Memory:
        """What the engines share."""

    def engine(self, name: str, shared: Mapping[str, Buffer], limits: Mapping[str, int]) -> Engine:
        """Load a graph. ``limits``: the largest value of each of its sizes. Raises EngineDirError."""

    def cache(self, layers: int, keys: CacheLayout, values: CacheLayout, capacity: int) -> Cache:
        """An empty cache, with the types of its keys and of its values."""

    def fork(self) -> Backend:
        """Another one over the same weights in memory, for another thread. Raises GpuMemoryError where there is no room for it."""

    def close(self) -> None:
        """Free what is this one's; the last fork frees the weights. May be repeated."""
