"""Policies decode recorded answers: the same objects as in service, in simulated time.

Which tokens a round brings is known from the traces, what it costs from the surface: no noise, thousands of rounds a second, and every
policy meets the same text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from policy import PLAIN, FixedPolicy, GrowthPolicy, LatencyModel, Observation, Outcome, PartialTree, Policy, TreeSpec

from .traces import Trace

Answers = Sequence[Mapping[int, Trace]]
"""Each answer's traces by width."""


@dataclass
class Replay:
    """What a policy did. ``trees``: (nodes verified, depth drafted, width) -> rounds."""

    tokens: int = 0
    milliseconds: float = 0.0
    cycles: int = 0
    trees: Counter[tuple[int, int, int]] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Tokens per millisecond."""
        return self.tokens / self.milliseconds

    @property
    def tokens_per_cycle(self) -> float:
        return self.tokens / self.cycles


def replay(policy: Policy, answers: Answers, latency: LatencyModel) -> Replay:
    """Decode every answer. A tree deeper than the traces is cut to them."""
    done = Replay()
    for traces in answers:
        some = next(iter(traces.values()))
        policy.begin()
        place = 0
        while place < len(some):
            place += play_round(policy, traces, some, place, latency, done)
    return done


def play_round(policy: Policy, traces: Mapping[int, Trace], some: Trace, place: int, latency: LatencyModel, done: Replay) -> int:
    """One round at ``place`` of an answer, added to ``done``; returns its tokens. ``some``: any of its ``traces``."""
    seen = observed(some, place)
    length, room = seen.length, seen.room
    spec = policy.choose(seen)
    asked = spec
    nodes, depth, gained = 1, 0, 1
    if spec.nodes > 1:
        trace = traces[spec.width]
        depth = min(spec.depth, trace.depth)
        spec = spec.within(spec.nodes, depth)
        nodes = spec.nodes
        if isinstance(policy, GrowthPolicy):
            depth, nodes = _grown(policy, spec, trace, place, length)
        gained = min(reached(trace, place, depth, nodes) + 1, room)
    cost = latency.round(nodes, depth, asked.width, length)
    policy.observe(Outcome(asked, nodes, gained, cost / 1000))
    done.tokens += gained
    done.milliseconds += cost
    done.cycles += 1
    done.trees[nodes, depth, asked.width if depth else 0] += 1
    return gained


def observed(some: Trace, place: int) -> Observation:
    """What a policy may look at before the round at ``place``."""
    return Observation(some.prompt + place, len(some) - place, lambda: some.features[place])


def _grown(policy: GrowthPolicy, spec: TreeSpec, trace: Trace, place: int, length: int) -> tuple[int, int]:
    level = 1

    def partial_tree() -> PartialTree:
        return PartialTree(spec, level, trace.scores[place, : candidates(spec.width, level)], length)

    while level < spec.depth and policy.should_expand(partial_tree()):
        level += 1
    return level, min(policy.num_nodes(partial_tree()), spec.nodes, 1 + candidates(spec.width, level))


def candidates(width: int, depth: int) -> int:
    """Entries of the pool of ``depth`` levels, without the root."""
    return width + (depth - 1) * width**2


def reached(trace: Trace, place: int, depth: int, nodes: int) -> int:
    """Draft tokens accepted of the best ``nodes`` - 1 candidates of ``depth`` levels: they are verified with the root."""
    scores = trace.scores[place, : candidates(trace.width, depth)]
    for level in range(depth):
        right = trace.right[place, level]
        if right < 0:
            return level
        better = int((scores > scores[right]).sum() + (scores[:right] == scores[right]).sum())
        if better >= nodes - 1:
            return level
    return depth


def static_trees(widths: Iterable[int], depths: Iterable[int], most_nodes: int, sizes: Sequence[int] | None = None) -> list[TreeSpec]:
    """Every fixed tree worth a try, plain decoding included. ``sizes``: those that engines have profiles for."""
    trees = [PLAIN]
    for width in widths:
        for depth in depths:
            capacity = min(most_nodes, 1 + candidates(width, depth))
            trees += [TreeSpec(nodes, depth, width) for nodes in sizes or range(2, capacity + 1) if 1 < nodes <= capacity]
    return trees


def best_static(answers: Answers, latency: LatencyModel, trees: Sequence[TreeSpec]) -> tuple[TreeSpec, Replay]:
    """The fixed tree with the most tokens per millisecond."""
    results = [(tree, replay(FixedPolicy(tree), answers, latency)) for tree in trees]
    return max(results, key=lambda result: result[1].rate)


def oracle(answers: Answers, latency: LatencyModel, trees: Sequence[TreeSpec], rate: float) -> Replay:
    """Who knows the answer: every round takes the tree with the most tokens minus ``rate`` x milliseconds. No policy can do better against
    this rate; its own rate, put in again, converges to the best possible."""
    done = Replay()
    for traces in answers:
        some = next(iter(traces.values()))
        place = 0
        while place < len(some):
            room, length = len(some) - place, some.prompt + place
            gains = [1 if tree.nodes == 1 else min(room, 1 + reached(traces[tree.width], place, tree.depth, tree.nodes)) for tree in trees]
            costs = [latency.round_with(tree, length) for tree in trees]
            best = int(np.argmax(np.array(gains) - rate * np.array(costs)))
            done.tokens += gains[best]
            done.milliseconds += costs[best]
            done.cycles += 1
            done.trees[trees[best].nodes, trees[best].depth, trees[best].width] += 1
            place += gains[best]
    return done
