"""The thread that runs the forest. Requests come in from any thread, and every reader has a queue of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from ..errors import DecoderClosed
from ..native_calls import NATIVE_CALLS
from ..request import Chunk
from .forest import Forest
from .lane import Delivery, Lane

CLOSED = "this Decoder was closed — make a new one"


class Driver:
    """Runs ``forest`` in a thread of its own, from the first request until ``close``. All methods may be called from any thread."""

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        self._changed = threading.Condition()
        self._arrived: deque[Lane] = deque()
        self._errands: deque[Callable[[], None]] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="resps-lanes", daemon=True)
        self._started = False

    def start(self, lane: Lane) -> Iterator[Chunk]:
        """Begin a request. Returns its chunks; iterating raises the error that ended it, if any. Raises DecoderClosed."""
        with self._changed:
            if self._closed:
                raise DecoderClosed(CLOSED)
            if not self._started:
                self._started = True
                self._thread.start()
            self._arrived.append(lane)
            self._changed.notify()
        return _chunks(lane.chunks)

    def forget(self) -> None:
        """Drop the prefix cache, between two cycles. Waits for it."""
        done = threading.Event()

        def clear() -> None:
            self.forest.prefixes.clear()
            done.set()

        with self._changed:
            if not self._started or self._closed:
                clear()
            else:
                self._errands.append(clear)
                self._changed.notify()
        done.wait()

    def wake(self) -> None:
        """A request was cancelled."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """End the thread after its current cycle, and all requests. May be called repeatedly, also in the thread itself."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._started and threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        forest = self.forest
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._arrived or self._errands or forest.lanes or forest.aside)
                arrived, errands = [*self._arrived], [*self._errands]
                self._arrived.clear()
                self._errands.clear()
            for errand in errands:
                errand()
            if self._closed:
                forest.close(arrived)
                return
            try:
                with NATIVE_CALLS:
                    for lane in arrived:
                        forest.admit(lane)
                    forest.cycle()
            except BaseException as error:  # a fault of the forest itself, or the end of the process: no reader may wait for ever
                forest.close(arrived, error)
                if not isinstance(error, Exception):
                    return


def _chunks(queue: SimpleQueue[Delivery]) -> Iterator[Chunk]:
    while (item := queue.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item
