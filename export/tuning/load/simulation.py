"""A forest in simulated time: recorded answers as lanes, under a latency model. Left out are faults, full caches and shared prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import thread_time
from typing import Protocol

import numpy as np

from policy import LaneHistory, LanesLatency, Policy
from runtime.lanes.chunks import ChunkSeconds
from runtime.lanes.pace import Pace

from ..replay.simulation import Answers, accepted_tokens, any_trace
from ..replay.traces import Trace
from .arrivals import Times

CHUNK = 128  # rows of a prompt that one pass reads at most


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

    def plan(self, lanes: Sequence[SimulatedLane], waiting: int, beside: int) -> list[Planned]:
        """The lanes' trees. ``waiting``: requests without a lane. ``beside``: rows of a prompt in the same pass."""

    def observe(self, lanes: Sequence[SimulatedLane], planned: Sequence[Planned], accepted: Sequence[int], ms: RoundMs) -> None:
        """What the round brought, before the lanes move on."""


@dataclass(frozen=True)
class RoundMs:
    """Milliseconds of a round's parts. ``beside``: rows of a prompt in its pass."""

    draft: float
    verify: float
    host: float
    beside: int

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


def simulate_load(
    arm: Arm, answers: Answers, times: Times, most: int, latency: LanesLatency, charge: bool = True, takes_chunks: bool = True
) -> LoadResult:
    """Run every answer as a request. ``times``: when each arrives. ``most``: lanes. ``charge``: whether decisions take the time that they
    take on this processor. ``takes_chunks``: whether a pass over trees may read a prompt as well, as on a CPU."""
    result, now, arrived = LoadResult(arrivals=times), 0.0, 0
    prompts, lanes = Prompts(latency, takes_chunks), list[SimulatedLane]()
    while arrived < len(answers) or lanes:
        if not lanes and times[arrived] > now:
            now = times[arrived]
        while arrived < len(answers) and len(lanes) < most and times[arrived] <= now:
            traces = dict(answers[arrived])
            lanes.append(SimulatedLane(traces, any_trace(traces).prompt_tokens, now))
            arm.admit(lanes[-1])
            arrived += 1
        before = now
        decoding = [lane for lane in lanes if not lane.unread]
        reading, rows = prompts.next(lanes)
        if reading and not (decoding and takes_chunks):
            now += prompts.read(reading, rows)
            reading.last, reading, rows = now, None, 0
        if decoding:
            waiting = sum(time <= now for time in times[arrived : arrived + most])
            started = thread_time()
            planned = arm.plan(decoding, waiting, rows)
            decided = thread_time() - started
            accepted = [plan.accepted(lane) for plan, lane in zip(planned, decoding, strict=True)]
            ms = prompts.round_ms(planned, decoding, reading, rows)
            started = thread_time()
            arm.observe(decoding, planned, accepted, ms)
            decided = 1000 * (decided + thread_time() - started) if charge and arm.charged else 0.0
            now += ms.whole + decided
            if reading:
                reading.last = now
            result.decisions_ms += decided
            result.rounds.append(RoundCount(now, len(planned), sum(plan.nodes for plan in planned), waiting))
            for lane, plan, count in zip(decoding, planned, accepted, strict=True):
                _move_on(lane, plan, count, now, result)
            lanes = [lane for lane in lanes if lane.room > 0]
        result.busy_ms += now - before
    return result


@dataclass
class Prompts:
    """Reads prompts in chunks, as a forest does: which rows, and what they take."""

    latency: LanesLatency
    takes_chunks: bool
    chunks: ChunkSeconds = field(init=False)
    pace: Pace = field(init=False, default_factory=Pace)

    def __post_init__(self) -> None:
        self.chunks = ChunkSeconds(self.latency)

    def next(self, lanes: Sequence[SimulatedLane]) -> tuple[SimulatedLane | None, int]:
        """The lane whose prompt is read now, and how many rows of it."""
        waiting = [lane for lane in lanes if lane.unread]
        if not waiting:
            return None, 0
        alone = len(waiting) == 1 < len(lanes)
        return waiting[0], min(waiting[0].unread, self.chunks.next_rows(CHUNK, self.pace, alone, self.takes_chunks))

    def read(self, lane: SimulatedLane, rows: int) -> float:
        """Read them in a pass of their own; returns its milliseconds."""
        lane.unread -= rows
        took = self.latency.read(rows, any_trace(lane.answer).prompt_tokens - lane.unread)
        self.chunks.observe(rows, took / 1000)
        return took

    def round_ms(self, planned: Sequence[Planned], lanes: Sequence[SimulatedLane], reading: SimulatedLane | None, beside: int) -> RoundMs:
        """A round of ``lanes``, whose pass reads the next ``beside`` rows of ``reading`` too."""
        count, latency = len(lanes), self.latency
        growing = growing_lanes(planned)
        width = max((plan.width for plan in planned if plan.depth), default=0)
        draft = sum(latency.draft(many, width, at + 1) - latency.draft(many, width, at) for at, many in enumerate(growing))
        length, rows = sum(lane.length for lane in lanes) / count, sum(plan.nodes for plan in planned)
        widest = max(plan.nodes for plan in planned)
        ms = RoundMs(draft, latency.verify_beside(rows, count, length, beside, widest), latency.host(count), beside)
        if reading:
            reading.unread -= beside
            self.chunks.observe(rows + beside, ms.verify / 1000)
        else:
            self.pace.count(ms.whole / 1000, rows)
        return ms


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
