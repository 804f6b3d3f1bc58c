"""What is known of a request when it is over: for the access log and for traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Scope

from ...decoding.stats import Stats

SCOPE_RECORD = "resps.record"


@dataclass(frozen=True)
class RequestRecord:
    """A request that reached the queue. Times are seconds by the clock ``monotonic``; None is what it did not come to.

    ``model``: its name. ``outcome``: as in /metrics. ``on_lane``: when its last answer got a lane; ``first``: when its first token came.
    ``stats``: of each finished answer.
    """

    model: str
    outcome: str
    stream: bool
    arrived: float
    on_lane: float | None
    first: float | None
    ended: float
    stats: Sequence[Stats]

    @property
    def prompt_tokens(self) -> int:
        return self.stats[0].prompt_tokens if self.stats else 0

    @property
    def completion_tokens(self) -> int:
        return sum(each.new_tokens for each in self.stats)


def record_of(scope: Scope) -> RequestRecord | None:
    """The record of the request with this ASGI scope, after its response; None if it never reached the queue."""
    found: RequestRecord | None = scope.get(SCOPE_RECORD)
    return found
