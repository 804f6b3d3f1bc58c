"""A forest in simulated time: recorded answers as lanes, under a latency model. Left out are faults, full caches and shared prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import thread_time
from typing import Protocol

import numpy as np

from policy import LaneHistory, LanesLatency, Policy

from ..replay.simulation import Answers, accepted_tokens, any_trace
from ..replay.traces import Trace
from .arrivals import Times

CHUNK = 128  # rows of a prompt that one pass reads


@dataclass
class Share:
    """What one request got: ``rounds``, ``drafted`` rows that were verified for it, and how many of those were accepted."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class RoundCount:
    """A round that ended at ``at`` milliseconds: its lanes, its ``rows``, and the requests that waited."""

    at: float
    lanes: int
    rows: int
    waiting: int


@dataclass(eq=False)
class SimulatedLane:
    """One running request. ``answer``: its traces by width. ``unread``: tokens of its prompt. ``last``: when its reader got something.
    ``policy``: its own copy, if the arm has policies of lanes. ``share``: what it got so far."""

    answer: dict[int, Trace]
    unread: int
    last: float
    position: int = 0
    history: LaneHistory = field(default_factory=LaneHistory)
    policy: Policy | None = None
    share: Share = field(default_factory=lambda: Share())

    @property
    def length(self) -> int:
        """Committed tokens."""
        return any_trace(self.answer).prompt_tokens + self.position

    @property
    def room(self) -> int:
        """Tokens that are left of the answer."""
        return len(any_trace(self.answer)) - self.position


@dataclass(frozen=True)
class Planned:
    """One lane's tree of a round: ``depth`` levels of ``width`` beams are drafted, ``nodes`` rows verified. Depth 0: plain."""

    nodes: int
    depth: int
    width: int

    def accepted(self, lane: SimulatedLane) -> int:
        """Draft tokens that the target accepts."""
        if self.depth == 0 or self.nodes == 1:
            return 0
        return min(accepted_tokens(lane.answer[self.width], lane.position, self.depth, self.nodes), lane.room - 1)


class Arm(Protocol):
    """Decides for all lanes of a round. ``charged``: whether the time of its decisions counts; for a bound it does not."""

    charged: bool

    def admit(self, lane: SimulatedLane) -> None:
        """A request begins."""

    def plan(self, lanes: Sequence[SimulatedLane], waiting: int) -> list[Planned]:
        """The lanes' trees; ``waiting``: requests without a lane."""

    def observe(self, lanes: Sequence[SimulatedLane], planned: Sequence[Planned], accepted: Sequence[int], ms: RoundMs) -> None:
        """What the round brought, before the lanes move on."""


@dataclass(frozen=True)
class RoundMs:
    """Milliseconds of a round's parts."""

    draft: float
    verify: float
    host: float

    @property
    def whole(self) -> float:
        return self.draft + self.verify + self.host


@dataclass
class LoadResult:
    """``tokens``, over all requests, without the first of each. ``busy_ms``: time in which a request ran. ``decisions_ms``: of that, the
    policy's own. ``gaps``: milliseconds between a token and the one before it. ``arrivals``: when requests came. ``rounds``, ``shares``: of
    every round and of every request, in the order of their ends."""

    tokens: int = 0
    busy_ms: float = 0.0
    decisions_ms: float = 0.0
    gaps: list[float] = field(default_factory=list)
    arrivals: Times = field(default_factory=list)
    rounds: list[RoundCount] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens per busy second."""
        return 1000 * self.tokens / self.busy_ms

    @property
    def p99(self) -> float:
        """99th percentile of the milliseconds per token."""
        return float(np.percentile(self.gaps, 99))


def simulate_load(arm: Arm, answers: Answers, times: Times, most: int, latency: LanesLatency, charge: bool = True) -> LoadResult:
    """Run every answer as a request. ``times``: when each arrives. ``most``: lanes. ``charge``: whether decisions take the time that they
    take on this processor."""
    result, now, arrived = LoadResult(arrivals=times), 0.0, 0
    lanes: list[SimulatedLane] = []
    while arrived < len(answers) or lanes:
        if not lanes and times[arrived] > now:
            now = times[arrived]
        while arrived < len(answers) and len(lanes) < most and times[arrived] <= now:
            traces = dict(answers[arrived])
            lanes.append(SimulatedLane(traces, any_trace(traces).prompt_tokens, now))
            arm.admit(lanes[-1])
            arrived += 1
        before, started = now, thread_time()
        decoding = [lane for lane in lanes if not lane.unread]
        now += _read_chunk(lanes, latency, now)
        if decoding:
            waiting = sum(time <= now for time in times[arrived : arrived + most])
            started = thread_time()
            planned = arm.plan(decoding, waiting)
            decided = thread_time() - started
            accepted = [plan.accepted(lane) for plan, lane in zip(planned, decoding, strict=True)]
            ms = _round_ms(planned, decoding, latency)
            started = thread_time()
            arm.observe(decoding, planned, accepted, ms)
            decided = 1000 * (decided + thread_time() - started) if charge and arm.charged else 0.0
            now += ms.whole + decided
            result.decisions_ms += decided
            result.rounds.append(RoundCount(now, len(planned), sum(plan.nodes for plan in planned), waiting))
            for lane, plan, count in zip(decoding, planned, accepted, strict=True):
                _move_on(lane, plan, count, now, result)
            lanes = [lane for lane in lanes if lane.room > 0]
        result.busy_ms += now - before
    return result


def _read_chunk(lanes: Sequence[SimulatedLane], latency: LanesLatency, now: float) -> float:
    """Read a chunk of the first prompt that waits for it; returns the milliseconds."""
    reading = next((lane for lane in lanes if lane.unread), None)
    if reading is None:
        return 0.0
    rows = min(CHUNK, reading.unread)
    reading.unread -= rows
    took = latency.verify(rows, 1, any_trace(reading.answer).prompt_tokens - reading.unread)
    reading.last = now + took
    return took


def _round_ms(planned: Sequence[Planned], lanes: Sequence[SimulatedLane], latency: LanesLatency) -> RoundMs:
    count = len(lanes)
    growing = growing_lanes(planned)
    width = max((plan.width for plan in planned if plan.depth), default=0)
    draft = sum(latency.draft(many, width, at + 1) - latency.draft(many, width, at) for at, many in enumerate(growing))
    length = sum(lane.length for lane in lanes) / count
    return RoundMs(draft, latency.verify(sum(plan.nodes for plan in planned), count, length), latency.host(count))


def growing_lanes(planned: Sequence[Planned]) -> list[int]:
    """How many lanes drafted each level."""
    return [sum(plan.depth > at for plan in planned) for at in range(max(plan.depth for plan in planned))]


def _move_on(lane: SimulatedLane, plan: Planned, accepted: int, now: float, result: LoadResult) -> None:
    share, tokens = lane.share, accepted + 1
    share.rounds, share.drafted, share.accepted = share.rounds + 1, share.drafted + plan.nodes - 1, share.accepted + accepted
    lane.position += tokens
    result.tokens += tokens
    result.gaps += [(now - lane.last) / tokens] * tokens
    lane.last = now
    if lane.room <= 0:
        result.shares.append(share)
