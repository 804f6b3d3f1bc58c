"""Sends overlapping requests: closed loop or at given times, and first come first served where places are scarce."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from queue import SimpleQueue
from time import perf_counter
from typing import Generic, TypeVar

import numpy as np

Server = TypeVar("Server")
Answer = TypeVar("Answer")

Ask = Callable[[int, float], Answer]
"""(number of the request, when it arrived in perf_counter's seconds) -> the answer. Called in a thread of its own."""


class Places(Generic[Server]):
    """Which server takes a request: the one with most free places, at most ``each`` requests at once on every server. Requests that find
    no place are served in the order in which they came."""

    def __init__(self, servers: Sequence[Server], each: int) -> None:
        self._servers, self._free = servers, [each] * len(servers)
        self._waiting: deque[SimpleQueue[int]] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[Server]:
        """Wait for a place; the block has it."""
        mine: SimpleQueue[int] = SimpleQueue()
        with self._lock:
            if any(self._free):  # then nobody waits
                place = max(range(len(self._free)), key=self._free.__getitem__)
                self._free[place] -= 1
                mine.put(place)
            else:
                self._waiting.append(mine)
        place = mine.get()
        try:
            yield self._servers[place]
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.popleft().put(place)
                else:
                    self._free[place] += 1


def poisson(rate: float, requests: int, seed: int) -> list[float]:
    """When each request arrives, in seconds: gaps are exponential with mean 1 / ``rate``; the first one arrives at 0."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=requests - 1)
    return [0.0, *np.cumsum(gaps).tolist()]


def closed_loop(requests: int, clients: int, ask: Ask[Answer], stop: threading.Event) -> list[Answer]:
    """The answers to requests 0, 1, ...: each of ``clients`` sends the next one as soon as its last answer has ended. See `_play`."""
    return _play(requests, clients, lambda number: perf_counter(), ask, stop)


def open_loop(times: Sequence[float], ask: Ask[Answer], stop: threading.Event) -> list[Answer]:
    """The answers to requests that arrive ``times`` seconds from now (ascending), whether others have ended or not. See `_play`."""
    begun = perf_counter()

    def wait(number: int) -> float:
        due = begun + times[number]
        stop.wait(max(0.0, due - perf_counter()))
        return due

    return _play(len(times), len(times), wait, ask, stop)


def _play(requests: int, threads: int, wait: Callable[[int], float], ask: Ask[Answer], stop: threading.Event) -> list[Answer]:
    """Every thread takes the next number, calls ``wait`` for the time of its arrival, and ``ask``. Sets ``stop`` when an ``ask`` raises or
    this thread is interrupted; ``ask`` should then return soon. Raises the first error when all threads have ended."""
    answers: dict[int, Answer] = {}
    errors: list[BaseException] = []
    numbers = count()

    def work() -> None:
        try:
            while (number := next(numbers)) < requests and not stop.is_set():
                arrived = wait(number)
                if not stop.is_set():
                    answers[number] = ask(number, arrived)
        except BaseException as error:
            errors.append(error)
            stop.set()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, requests))]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        stop.set()
        for worker in workers:
            if worker.ident is not None:
                worker.join()
    if errors:
        raise errors[0]
    return [answers[number] for number in range(requests)]
