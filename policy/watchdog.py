"""The watchdog around a learned policy: it falls back to the best fixed tree if that is faster, and to plain decoding while trees lose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp, log, sqrt
from statistics import mean, stdev
from typing import TypeVar

from .backoff import Backoff
from .base import GrowthPolicy, Observation, Outcome, PartialTree, Policy, trees_of
from .latency import RoundCosts
from .spec import PLAIN, TreeSpec

WINDOW = 12  # rounds
COMPARISON_PERIOD = 8  # windows; the last of them runs the fixed tree
MIN_COMPARISONS, MAX_COMPARISONS = 8, 32  # for a verdict
TOLERANCE = 0.97  # of the fixed tree's speed
# Standard errors. Text differs more from window to window than policies do: falling back after three lost comparisons in a row rejected
# every policy.
CONFIDENCE = 3.0

T = TypeVar("T")


def watch(policy: Policy, fixed_tree: TreeSpec, latency: RoundCosts) -> Watchdog:
    """``policy`` behind a watchdog. ``fixed_tree``: the best fixed tree. ``latency``: of this machine."""
    if isinstance(policy, GrowthPolicy):
        return WatchdogGrowth(policy, fixed_tree, latency)
    return Watchdog(policy, fixed_tree, latency)


@dataclass
class Watchdog:
    """Runs ``policy`` until its tokens per second are significantly below those of ``fixed_tree``, from then on ``fixed_tree``.

    One window of rounds in eight runs ``fixed_tree``, so both are measured on the same text. A policy that raises ValueError (its network
    gives no numbers) is given up at once. ``fallback_reason``: why the policy was given up, else None; it holds for all later requests of a
    Decoder. In both states a Backoff pauses drafting while plain decoding would be faster. That decision uses ``latency`` instead of the
    round's own time, so that a slow moment does not make trees look slower than plain decoding.
    """

    policy: Policy
    fixed_tree: TreeSpec
    latency: RoundCosts
    fallback_reason: str | None = field(default=None, init=False)
    _backoff: Backoff = field(default_factory=Backoff, init=False)
    _paused: bool = field(default=False, init=False)
    _length: int = field(default=0, init=False)
    _round: int = field(default=0, init=False)
    _tokens: list[float] = field(default_factory=lambda: [0.0, 0.0], init=False)  # policy, fixed tree
    _seconds: list[float] = field(default_factory=lambda: [0.0, 0.0], init=False)
    _log_ratios: list[float] = field(default_factory=list, init=False)  # log(policy's speed / fixed tree's), by comparison

    @property
    def state(self) -> str:
        """One of "policy", "fixed" (the policy was given up) and "paused" (decoding is plain)."""
        return "paused" if self._paused else "fixed" if self.fallback_reason else "policy"

    @property
    def trees(self) -> tuple[TreeSpec, ...]:
        return (self.fixed_tree, *trees_of(self.policy))

    @property
    def _in_fixed_window(self) -> bool:
        return self._round // WINDOW % COMPARISON_PERIOD == COMPARISON_PERIOD - 1

    def begin(self) -> None:
        self.policy.begin()
        self._backoff.begin()

    def choose(self, observation: Observation) -> TreeSpec:
        self._length = observation.length
        self._paused = self._backoff.should_pause()
        if self._paused:
            return PLAIN
        return self._policy_or(self.fixed_tree, lambda: self.policy.choose(observation))

    def observe(self, outcome: Outcome) -> None:
        depth = self._depth(outcome)
        self.latency.observe(outcome, depth, self._length)
        if outcome.spec != PLAIN:
            spent = self.latency.round(outcome.nodes, depth, outcome.spec.width, self._length)
            self._backoff.observe(outcome.tokens * self.latency.round(1, 0, 0, self._length) - spent)
        if self.fallback_reason or self._paused:
            return
        index = int(self._in_fixed_window)
        if not index:
            self.policy.observe(outcome)
        self._tokens[index] += outcome.tokens
        self._seconds[index] += outcome.seconds
        self._round += 1
        if self._round % (WINDOW * COMPARISON_PERIOD) == 0:
            self._compare()

    def _depth(self, outcome: Outcome) -> int:
        """Levels that a round drafted."""
        return outcome.spec.depth

    def _policy_or(self, fallback: T, decide: Callable[[], T]) -> T:
        """The policy's decision; ``fallback`` in a fixed window, after the policy was given up, and if ``decide`` raises ValueError."""
        if self.fallback_reason or self._in_fixed_window:
            return fallback
        try:
            return decide()
        except ValueError as problem:
            self.fallback_reason = str(problem)
            return fallback

    def _compare(self) -> None:
        (tokens, fixed_tokens), (seconds, fixed_seconds) = self._tokens, self._seconds
        self._tokens, self._seconds = [0.0, 0.0], [0.0, 0.0]
        if not (seconds and fixed_seconds):
            return
        self._log_ratios = [*self._log_ratios[1 - MAX_COMPARISONS :], log(tokens / seconds) - log(fixed_tokens / fixed_seconds)]
        if len(self._log_ratios) < MIN_COMPARISONS:
            return
        ratio, margin = mean(self._log_ratios), CONFIDENCE * stdev(self._log_ratios) / sqrt(len(self._log_ratios))
        if ratio + margin < log(TOLERANCE):
            self.fallback_reason = f"{exp(ratio):.2f} times as fast as the tree {self.fixed_tree}"


@dataclass
class WatchdogGrowth(Watchdog):
    """A Watchdog for a GrowthPolicy. It is a class of its own because the drafter reads partial trees only for GrowthPolicies, and on a
    device every such read costs a copy."""

    policy: GrowthPolicy
    _level: int = field(default=0, init=False)

    def should_expand(self, partial_tree: PartialTree) -> bool:
        return self._policy_or(True, lambda: self.policy.should_expand(partial_tree))

    def num_nodes(self, partial_tree: PartialTree) -> int:
        self._level = partial_tree.level
        return self._policy_or(partial_tree.spec.nodes, lambda: self.policy.num_nodes(partial_tree))

    def _depth(self, outcome: Outcome) -> int:
        return self._level if outcome.spec.depth else 0
