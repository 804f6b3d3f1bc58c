"""Calls into native code, and what becomes of them when the process ends or forks.

Python ends a daemon thread in the moment in which it returns from native code, and C++ or Rust code does not survive that: the process
aborts. So the end of the process waits for the running calls, and threads that want to begin another one wait until they are ended. A
forked child has none of the threads that its parent's engines compute with, so what was loaded before the fork is refused there.
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import NoReturn

from .errors import DecoderClosed

EXIT_SECONDS = 10.0
"""How long the end of the process waits for the running calls, and a thread's next call for the end of the process."""


class NativeCalls:
    """A context manager around calls into native code; every thread uses the same object. ``end`` is called once, when the process ends."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, in a forked child: other threads may have held the lock, and their calls run in the parent only."""
        self._changed = threading.Condition()  # reentrant: a signal handler may use a Decoder of the thread that it interrupts
        self._running, self._ending = 0, False

    def __enter__(self) -> None:
        with self._changed:
            if self._ending and threading.current_thread() is not threading.main_thread():
                self._wait_for_the_end()
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._running -= 1
            if self._ending:
                self._changed.notify_all()

    def _wait_for_the_end(self) -> NoReturn:
        self._changed.wait_for(lambda: False, EXIT_SECONDS)
        raise DecoderClosed("the process is ending — cancel and join the threads that decode before that")

    def end(self) -> None:
        """Begin no more calls in other threads, and wait for the running ones."""
        with self._changed:
            self._ending = True
            self._changed.wait_for(lambda: self._running == 0, EXIT_SECONDS)


NATIVE_CALLS = NativeCalls()
atexit.register(NATIVE_CALLS.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=NATIVE_CALLS.forget)


def expect_own_process(process: int) -> None:
    """Raises DecoderClosed if ``process``, in which something was loaded, is not this one."""
    if process != os.getpid():
        raise DecoderClosed("this Decoder was loaded before this process was forked — load it after the fork, or start processes by spawn")
