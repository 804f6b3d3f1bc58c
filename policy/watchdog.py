"""A guard for policies in service: plain decoding where trees lose, and the best fixed tree where that is faster than the policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp, log, sqrt
from statistics import mean, stdev
from typing import TypeVar

from .backoff import Backoff
from .base import GrowthPolicy, Observation, Outcome, PartialTree, Policy, trees_of
from .latency import LatencyModel
from .spec import PLAIN, TreeSpec

WINDOW = 12  # rounds
EVERY = 8  # windows: the last of them is the fixed tree's, to compare with
LEAST, MOST = 8, 32  # comparisons that a verdict is based on
TOLERANCE = 0.97
SURE = 3.0  # standard errors. Text differs more from window to window than policies do: three losses in a row pinned all of them

Answer = TypeVar("Answer")


def watch(policy: Policy, static: TreeSpec, latency: LatencyModel) -> Watchdog:
    """``policy`` under guard. ``static``: the best fixed tree; ``latency``: what rounds cost on this machine."""
    if isinstance(policy, GrowthPolicy):
        return WatchdogGrowth(policy, static, latency)
    return Watchdog(policy, static, latency)


@dataclass
class Watchdog:
    """``policy`` until its tokens per second are behind ``static``'s beyond doubt, from then on ``static``.

    One window of rounds in eight belongs to ``static``, so that both are measured on the same text. A policy that raises ValueError (no
    number in its network) is given up at once. ``pinned`` says why it was; what was learned holds for all requests of a Decoder. Either
    pauses where plain decoding would be faster, by ``latency``: a machine that is busy does not make trees dearer than plain decoding.
    """

    policy: Policy
    static: TreeSpec
    latency: LatencyModel
    pinned: str | None = field(default=None, init=False)
    _backoff: Backoff = field(default_factory=Backoff, init=False)
    _resting: bool = field(default=False, init=False)
    _length: int = field(default=0, init=False)
    _round: int = field(default=0, init=False)
    _tokens: list[float] = field(default_factory=lambda: [0.0, 0.0], init=False)  # policy, static
    _seconds: list[float] = field(default_factory=lambda: [0.0, 0.0], init=False)
    _logs: list[float] = field(default_factory=list, init=False)  # of the policy's rate over the static tree's, by comparison

    @property
    def state(self) -> str:
        """What it does now: "policy", "fixed" when the policy was given up, or "paused" while decoding is plain."""
        return "paused" if self._resting else "fixed" if self.pinned else "policy"

    @property
    def trees(self) -> tuple[TreeSpec, ...]:
        return (self.static, *trees_of(self.policy))

    @property
    def _comparing(self) -> bool:
        return self._round // WINDOW % EVERY == EVERY - 1

    def begin(self) -> None:
        self.policy.begin()
        self._backoff.begin()

    def choose(self, observation: Observation) -> TreeSpec:
        self._length = observation.length
        self._resting = self._backoff.should_pause()
        if self._resting:
            return PLAIN
        return self._asked(lambda: self.policy.choose(observation), self.static)

    def observe(self, outcome: Outcome) -> None:
        if outcome.spec != PLAIN:
            self._backoff.observe(outcome.tokens * self.latency.round(1, 0, 0, self._length) - self._cost(outcome))
        if self.pinned or self._resting:
            return
        arm = int(self._comparing)
        if not arm:
            self.policy.observe(outcome)
        self._tokens[arm] += outcome.tokens
        self._seconds[arm] += outcome.seconds
        self._round += 1
        if self._round % (WINDOW * EVERY) == 0:
            self._compare()

    def _cost(self, outcome: Outcome) -> float:
        """Milliseconds of a round."""
        return self.latency.round(outcome.nodes, outcome.spec.depth, outcome.spec.width, self._length)

    def _asked(self, ask: Callable[[], Answer], otherwise: Answer) -> Answer:
        """The policy's answer; ``otherwise`` while it is not its turn or when it has none."""
        if self.pinned or self._comparing:
            return otherwise
        try:
            return ask()
        except ValueError as problem:
            self.pinned = str(problem)
            return otherwise

    def _compare(self) -> None:
        (tokens, static_tokens), (seconds, static_seconds) = self._tokens, self._seconds
        self._tokens, self._seconds = [0.0, 0.0], [0.0, 0.0]
        if not (seconds and static_seconds):
            return
        self._logs = [*self._logs[1 - MOST :], log(tokens / seconds) - log(static_tokens / static_seconds)]
        if len(self._logs) < LEAST:
            return
        ratio, doubt = mean(self._logs), SURE * stdev(self._logs) / sqrt(len(self._logs))
        if ratio + doubt < log(TOLERANCE):
            self.pinned = f"{exp(ratio):.2f} times as fast as the tree {self.static}"


@dataclass
class WatchdogGrowth(Watchdog):
    """The same for a policy that looks at growing trees; others are spared the looking, which costs a copy on a device."""

    policy: GrowthPolicy
    _level: int = field(default=0, init=False)

    def should_expand(self, partial_tree: PartialTree) -> bool:
        """As the policy says; a fixed tree grows to its depth."""
        return self._asked(lambda: self.policy.should_expand(partial_tree), True)

    def num_nodes(self, partial_tree: PartialTree) -> int:
        """As the policy says, else everything that was allowed."""
        self._level = partial_tree.level
        return self._asked(lambda: self.policy.num_nodes(partial_tree), partial_tree.spec.nodes)

    def _cost(self, outcome: Outcome) -> float:
        return self.latency.round(outcome.nodes, self._level, outcome.spec.width, self._length)
