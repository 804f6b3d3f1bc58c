"""Clients: closed loop, Poisson arrivals, places, errors and interruptions."""

from __future__ import annotations

import threading
from time import perf_counter, sleep

import numpy as np
import pytest

from runtime.bench.load.clients import Places, closed_loop, open_loop, poisson


class Running:
    """Counts how many requests run at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.now -= 1


@pytest.mark.parametrize("clients", [1, 3, 50])
def test_a_closed_loop_asks_every_request_once_with_so_many_at_once(clients: int) -> None:
    running, asked = Running(), []
    barrier = threading.Barrier(min(clients, 12))  # passes only if all clients ask at the same time

    def ask(number: int, arrived: float) -> int:
        assert arrived <= perf_counter()
        with running:
            asked.append(number)
            barrier.wait(10)
        return number * number

    assert closed_loop(12, clients, ask, threading.Event()) == [number * number for number in range(12)]
    assert sorted(asked) == list(range(12))
    assert running.most == min(clients, 12)


def test_a_client_sends_its_next_request_when_its_last_answer_has_ended() -> None:
    ended: list[float] = []
    arrivals: list[float] = []

    def ask(number: int, arrived: float) -> None:
        arrivals.append(arrived)
        sleep(0.002)
        ended.append(perf_counter())

    closed_loop(5, 1, ask, threading.Event())
    assert all(arrived >= end for arrived, end in zip(arrivals[1:], ended, strict=False))


def test_an_open_loop_does_not_wait_for_answers() -> None:
    """All answers wait for the last request: in a closed loop they would wait for ever."""
    last, times = threading.Event(), [0.0, 0.01, 0.03]
    begun = perf_counter()

    def ask(number: int, arrived: float) -> float:
        if number == 2:
            last.set()
        assert last.wait(10)
        assert arrived <= perf_counter()
        return arrived - begun

    offsets = open_loop(times, ask, threading.Event())
    assert np.diff(offsets) == pytest.approx([0.01, 0.02])  # when they were due, whenever a thread came to it


def test_poisson_arrivals_have_the_rate_and_follow_the_seed() -> None:
    times = np.array(poisson(4.0, 20_001, seed=1))
    gaps = np.diff(times)
    assert times[0] == 0
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(0.25, rel=0.03)  # exponential
    assert poisson(4.0, 9, seed=1) == poisson(4.0, 9, seed=1) != poisson(4.0, 9, seed=2)
    assert poisson(4.0, 1, seed=1) == [0.0]


def test_places_are_limited_and_the_emptiest_server_is_taken() -> None:
    places, order = Places(["a", "b"], 2), []
    with places.take() as first, places.take() as second, places.take() as third, places.take() as fourth:
        order = [first, second, third, fourth]
        waiting = threading.Thread(target=lambda: places.take().__enter__(), daemon=True)
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()
    assert sorted(order[:2]) == sorted(order[2:]) == ["a", "b"]


def test_requests_that_wait_for_a_place_are_served_in_order() -> None:
    places, served = Places(["only"], 1), []

    def wait(number: int) -> None:
        with places.take():
            served.append(number)

    with places.take():
        threads = []
        for number in range(6):
            threads.append(threading.Thread(target=wait, args=(number,)))
            threads[-1].start()
            while len(places._waiting) <= number:
                sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert served == list(range(6))


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_an_error_ends_the_others_and_is_raised(error: BaseException) -> None:
    stop, ended = threading.Event(), []

    def ask(number: int, arrived: float) -> None:
        if number == 2:
            raise error
        assert stop.wait(10)
        ended.append(number)

    with pytest.raises(type(error)):
        closed_loop(100, 3, ask, stop)
    assert sorted(ended) == [0, 1]
    assert threading.active_count() < 20


def test_an_open_loop_that_is_stopped_does_not_wait_for_its_arrivals() -> None:
    def ask(number: int, arrived: float) -> None:
        raise ValueError("wrong")

    begun = perf_counter()
    with pytest.raises(ValueError, match="wrong"):
        open_loop([0.0, 1000.0], ask, threading.Event())
    assert perf_counter() - begun < 100
