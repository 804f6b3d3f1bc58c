"""Several clients, each of which sends its next request as soon as its last answer has ended. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from time import perf_counter

from scripts.peers.protocol import BatchEngine, PeerRequest, Stopwatch


def closed_loop(engine: BatchEngine, prompts: Sequence[list[int]], clients: int, new_tokens: int, stop: Sequence[int]) -> list[PeerRequest]:
    """The answers to all prompts, with at most ``clients`` requests at once."""
    begun = perf_counter()
    running: dict[int, Stopwatch] = {}
    done: dict[int, PeerRequest] = {}
    waiting = iter(enumerate(prompts))

    def send() -> None:
        if (following := next(waiting, None)) is not None:
            number, prompt = following
            running[number] = Stopwatch()
            engine.add(number, list(prompt), new_tokens)

    for _ in range(clients):
        send()
    while running:
        for number, tokens, ended in engine.step():
            running[number].saw(tokens)
            if ended:
                done[number] = request_of(running.pop(number), begun, stop)
                send()
    return [done[number] for number in range(len(prompts))]


def request_of(stopwatch: Stopwatch, begun: float, stop: Sequence[int]) -> PeerRequest:
    """Raises ValueError if no token came."""
    answer = stopwatch.answer(list(stop))
    times = [time for time, _ in stopwatch.times]
    waits = [round(later - earlier, 7) for earlier, later in pairwise(times)]
    counts = [count for _, count in stopwatch.times[1:]]
    return PeerRequest(answer.tokens, round(stopwatch.started - begun, 7), round(answer.first_seconds, 7), waits, counts)
