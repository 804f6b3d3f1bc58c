"""A pool of fake replicas, whose requests end when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic
from types import SimpleNamespace
from typing import Any

from runtime.lanes.pace import Pace
from runtime.serve.admission.pool import Pool
from runtime.serve.admission.turn import Turn
from runtime.serve.settings import ServerSettings


class FakeReplica:
    """A replica with ``lanes``, whose cache holds the tokens ``cached``."""

    def __init__(self, lanes: int, *cached: int) -> None:
        self.lanes, self.cached, self.healthy, self.running = lanes, cached, True, set[Any]()
        self.decoder = SimpleNamespace(pace=Pace())

    def common_prefix(self, prompt: Any) -> int:
        return len(set(self.cached) & set(prompt))

    def start(self, request: Any, on_free: Callable[[None], None]) -> None:
        """The test decides when the request ends: it finds ``finish`` in the request's list."""

        def finish() -> None:
            self.running.remove(request)
            on_free(None)

        self.running.add(request)
        request.ends.append(finish)


@dataclass(frozen=True, eq=False)
class Request:
    """``ends``: gets the function that ends it."""

    ends: list[Any]
    turn: Turn = field(default_factory=lambda: Turn("me", 0, 0.0, 0.0))


def with_pool(test: Callable[[Pool, list[Any]], Awaitable[None]], count: int = 1, lanes: int = 1, **settings: Any) -> None:
    """Run ``test`` with a pool of ``count`` fake replicas. ``settings``: fields of ServerSettings."""
    replicas: list[Any] = [FakeReplica(lanes, at) for at in range(count)]

    async def run() -> None:
        await test(Pool(replicas, ServerSettings("toy", **settings)), replicas)

    asyncio.run(run())


def turn(client: str = "me", priority: int = 0, seconds: float = 1000.0, tokens: int = 1) -> Turn:
    """Of a request whose deadline is in ``seconds``."""
    return Turn(client, priority, monotonic() + seconds, seconds, tokens)
