"""The guard of trees that do not decide by themselves whether they pay: plain decoding for a while, when they keep losing against it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .backoff import Backoff
from .base import Observation, Outcome, Policy, trees_of
from .correction import CorrectedLatency
from .spec import PLAIN, TreeSpec


@dataclass
class Guarded:
    """``policy``, a Policy that chooses whole trees, with a Backoff. ``latency``: says what a tree costs under the present load, if the
    other lanes have the same one; so that a slow moment does not make trees look slower than plain decoding."""

    policy: Policy
    latency: CorrectedLatency
    _backoff: Backoff = field(default_factory=Backoff, init=False)
    _load: tuple[int, int] = field(default=(1, 0), init=False)  # lanes, committed tokens
    _paused: bool = field(default=False, init=False)

    @property
    def state(self) -> str:
        """As in Watchdog: "policy", or "paused" (decoding is plain)."""
        return "paused" if self._paused else "policy"

    @property
    def trees(self) -> tuple[TreeSpec, ...]:
        return trees_of(self.policy)

    def begin(self) -> None:
        self.policy.begin()
        self._backoff.begin()

    def choose(self, observation: Observation) -> TreeSpec:
        self._load = observation.lanes, observation.length
        self._paused = self._backoff.should_pause()
        return PLAIN if self._paused else self.policy.choose(observation)

    def observe(self, outcome: Outcome) -> None:
        (lanes, length), spec = self._load, outcome.spec
        self.latency.observe(outcome, spec.depth, length)
        if self._paused:
            return
        self.policy.observe(outcome)
        if spec == PLAIN:
            return
        plain = self.latency.verify(lanes, lanes, length)
        more = self.latency.verify(lanes * outcome.nodes, lanes, length) - plain + self.latency.draft(lanes, spec.width, spec.depth)
        self._backoff.observe((outcome.tokens - 1) * (plain + self.latency.host(lanes)) / lanes - more / lanes)
