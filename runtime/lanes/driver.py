"""The thread that runs the forest. Requests come in from any thread, and every reader has a queue of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from ..errors import DecoderClosed
from ..native_calls import NATIVE_CALLS
from ..request import Chunk
from .forest import Forest
from .lane import Delivery, Lane

CLOSED = "this Decoder was closed — make a new one"


class Driver:
    """Runs ``forest`` in a thread of its own, from the first request until ``close``, or until ``release`` and the last request's end."""

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        # Its put() needs no lock: a signal handler or a finalizer may interrupt whoever puts something, and put something itself.
        self._inbox: SimpleQueue[Lane | Callable[[], None]] = SimpleQueue()
        self._closed = self._released = False
        self._at_end: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name="resps-lanes", daemon=True)

    def start(self, lane: Lane) -> Iterator[Chunk]:
        """Begin a request. Returns its chunks; iterating raises what ended it. For one thread at a time. Raises DecoderClosed."""
        if not self._closed and self._thread.ident is None:
            self._thread.start()
        self._inbox.put(lane)
        if self._closed:  # asked only now: the thread takes out what was put in before, and nothing later
            raise DecoderClosed(CLOSED)
        return _chunks(lane.chunks)

    def forget(self) -> None:
        """Drop the prefix cache, between two cycles. Waits for it."""
        if self._closed or not self._thread.is_alive():
            self.forest.forget()
            return
        done = threading.Event()

        def forget() -> None:
            self.forest.forget()
            done.set()

        self._inbox.put(forget)
        done.wait()

    def release(self) -> None:
        """Nobody will start another request: end the thread after those that run."""
        self._inbox.put(self._set_released)

    def _set_released(self) -> None:
        self._released = True

    def close(self, at_end: Callable[[], None]) -> None:
        """End the thread after its current cycle, and all requests, then call ``at_end``. May be called repeatedly. Called in the thread
        itself, as by a policy, it returns at once and ``at_end`` is called later."""
        own = threading.current_thread() is self._thread
        if own:
            self._at_end = at_end
        self._closed = True
        self._inbox.put(lambda: None)  # wakes the thread
        if not own:
            if self._thread.is_alive():
                self._thread.join()
            at_end()

    def _run(self) -> None:
        forest = self.forest
        while not self._closed and not (self._released and forest.idle):
            arrived = self._arrived(wait=forest.idle)
            try:
                with NATIVE_CALLS:
                    for lane in arrived:
                        forest.admit(lane)
                    forest.cycle()
            except BaseException as error:  # a fault of the forest itself, or the end of the process: no reader may wait for ever
                forest.close(arrived, error)
        forest.close(self._arrived(wait=False))
        if self._at_end is not None:
            self._at_end()

    def _arrived(self, wait: bool) -> list[Lane]:
        """The lanes that came in; calls what else came in. ``wait``: until something comes in."""
        came = [self._inbox.get()] if wait else []
        while not self._inbox.empty():
            came.append(self._inbox.get())
        for each in came:
            if not isinstance(each, Lane):
                each()
        return [each for each in came if isinstance(each, Lane)]


def _chunks(queue: SimpleQueue[Delivery]) -> Iterator[Chunk]:
    while (item := queue.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item
