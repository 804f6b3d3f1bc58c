"""An emulated GPU and TensorRT on the host, on which the real GPU backends run.

Work in a stream runs only when someone waits for it, addresses are checked against allocations, and plans run their ONNX files in ONNX
Runtime. So tests detect a missing wait, an upload that changed too early, a wrong address, shape, profile or alias, an outdated CUDA graph,
and a memory leak.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from typing import Any

from runtime.backends.cuda.driver import Gpu

JUNK = 0x7F  # the bytes of unwritten memory, which are large as floats


class EmulatedCuda:
    """Emulates driver.Cuda. ``eager``: work runs at once, for engines that do not use the stream."""

    def __init__(self, capability: str = "9.0", memory: int = 1 << 33, eager: bool = False) -> None:
        self.capability, self.memory, self.eager = capability, memory, eager
        self.stream = 77
        self.calls: Counter[str] = Counter()
        self.waits_with_work = 0
        self.downloads = 0
        self._alive: dict[int, Any] = {}
        self._pinned: set[int] = set()
        self._queue: list[Callable[[], None]] = []
        self._capture: list[Callable[[], None]] | None = None
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self.closed = False
        self.streams = [self]

    def another(self) -> EmulatedCuda:
        """Another stream of the same GPU."""
        other = EmulatedCuda(self.capability, self.memory, self.eager)
        other.stream, other._alive, other._pinned, other.streams = self.stream + len(self.streams), self._alive, self._pinned, self.streams
        self.streams.append(other)
        return other

    def on(self, stream: int) -> EmulatedCuda:
        """The one with this stream."""
        return next(each for each in self.streams if each.stream == stream)

    def gpu(self) -> Gpu:
        return Gpu("Emulated", self.capability, self.memory)

    def used(self) -> int:
        return sum(len(block) for address, block in list(self._alive.items()) if address not in self._pinned)

    def free_memory(self) -> int:
        return self.memory - self.used()

    def allocate(self, size: int) -> int:
        assert size > 0
        block = (ctypes.c_uint8 * (size + 256))()
        address = -(-ctypes.addressof(block) // 256) * 256
        ctypes.memset(address, JUNK, size)
        view = (ctypes.c_uint8 * size).from_address(address)
        view._keep = block  # type: ignore[attr-defined]
        self._alive[address] = view
        return address

    def free(self, address: int) -> None:
        assert not self._queue, "memory was freed while work still uses it"
        del self._alive[address]

    def allocate_pinned(self, size: int) -> int:
        address = self.allocate(size)
        self._pinned.add(address)
        return address

    def free_pinned(self, address: int) -> None:
        self._pinned.remove(address)
        self.free(address)

    def check(self, address: int, size: int) -> None:
        """Fails unless the range lies inside one live allocation."""
        assert any(start <= address and address + size <= start + len(block) for start, block in list(self._alive.items())), (address, size)

    def put(self, work: Callable[[], None]) -> None:
        if self._capture is not None:
            self._capture.append(work)
        elif self.eager:
            work()
        else:
            self._queue.append(work)

    @property
    def capturing(self) -> bool:
        return self._capture is not None

    def copy(self, target: int, source: int, size: int) -> None:
        self.calls["copy"] += 1
        self.check(target, size)
        self.check(source, size)
        assert target + size <= source or source + size <= target, "copies must not overlap"
        self.downloads += any(start <= target < start + len(self._alive[start]) for start in list(self._pinned))
        self.put(lambda: ctypes.memmove(target, source, size) and None)

    def copy_rows(self, target: int, source: int, pitch: int, width: int, rows: int) -> None:
        self.calls["copy_rows"] += 1
        for row in range(rows):
            self.check(target + row * pitch, width)
            self.check(source + row * pitch, width)

        def work() -> None:
            for row in range(rows):
                ctypes.memmove(target + row * pitch, source + row * pitch, width)

        self.put(work)

    def copy_blocks(self, target: int, source: int, width: int, rows: tuple[int, int], blocks: tuple[int, int]) -> None:
        self.calls["copy_blocks"] += 1
        (count, pitch), (depth, apart) = rows, blocks
        assert apart % pitch == 0
        assert width <= pitch
        offsets = [block * apart + row * pitch for block in range(depth) for row in range(count)]
        for offset in offsets:
            self.check(target + offset, width)
            self.check(source + offset, width)

        def work() -> None:
            for offset in offsets:
                ctypes.memmove(target + offset, source + offset, width)

        self.put(work)

    def clear(self, target: int, size: int) -> None:
        self.clear_rows(target, size, size, 1)

    def clear_rows(self, target: int, pitch: int, width: int, rows: int) -> None:
        for row in range(rows):
            self.check(target + row * pitch, width)

        def work() -> None:
            for row in range(rows):
                ctypes.memset(target + row * pitch, 0, width)

        self.put(work)

    def synchronize(self) -> None:
        assert self._capture is None, "waiting is not allowed during capture"
        self.calls["synchronize"] += 1
        self.waits_with_work += bool(self._queue)
        for work in self._queue:
            work()
        self._queue.clear()

    def capture_graph(self, work: Callable[[], None]) -> int:
        self._capture = []
        try:
            work()
            graph = len(self._graphs) + 1000
            self._graphs[graph] = self._capture
            self.calls["capture_graph"] += 1
            return graph
        finally:
            self._capture = None

    def launch_graph(self, graph: int) -> None:
        self.calls["launch_graph"] += 1
        for work in self._graphs[graph]:
            self.put(work)

    def destroy_graph(self, graph: int) -> None:
        self._graphs[graph] = []
        self.calls["destroy_graph"] += 1

    def record_event(self) -> int:
        self.calls["record_event"] += 1
        return self.calls["record_event"]

    def elapsed_ms(self, first: int, second: int) -> float:
        """Not a measurement: the number of events between the two."""
        self.synchronize()
        return float(second - first)

    def close(self) -> None:
        assert not self.closed
        assert not self._queue
        self.closed = True

    def leaked(self) -> tuple[int, int]:
        """(allocations, CUDA graphs) that were not freed."""
        return len(self._alive), sum(each.calls["capture_graph"] - each.calls["destroy_graph"] for each in self.streams)
