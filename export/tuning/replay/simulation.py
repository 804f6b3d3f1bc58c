"""Replays policies on recorded answers in simulated time. The policy objects are the ones that run in service.

The traces say how many tokens a round gains and the latency model says how long it takes. So a replay has no noise, runs thousands of
rounds a second, and gives every policy the same text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import thread_time

import numpy as np

from policy import PLAIN, FixedPolicy, GrowthPolicy, LatencyModel, Observation, Outcome, PartialTree, Policy, TreeSpec

from .traces import Trace

Answers = Sequence[Mapping[int, Trace]]
"""For each answer, its traces by tree width."""


@dataclass
class ReplayResult:
    """Totals of a replay. ``milliseconds``: of rounds, with the policy's own time if that was charged. ``trees``: (nodes verified, depth
    drafted, width) -> number of rounds. ``answer_rates``: tokens per millisecond of each answer."""

    tokens: int = 0
    milliseconds: float = 0.0
    cycles: int = 0
    trees: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    answer_rates: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens per millisecond."""
        return self.tokens / self.milliseconds

    @property
    def tokens_per_cycle(self) -> float:
        return self.tokens / self.cycles

    def add(self, tree: tuple[int, int, int], tokens: int, milliseconds: float) -> None:
        """Count one round."""
        self.tokens += tokens
        self.milliseconds += milliseconds
        self.cycles += 1
        self.trees[tree] += 1


def replay(policy: Policy, answers: Answers, latency: LatencyModel, charge: bool = False) -> ReplayResult:
    """Let ``policy`` decode every answer. Trees deeper than the traces are clipped to them. ``charge``: whether its decisions take the
    processor time that they take here."""
    result = ReplayResult()
    for traces in answers:
        length = len(any_trace(traces))
        policy.begin()
        position, before = 0, result.milliseconds
        while position < length:
            position += simulate_round(policy, traces, position, latency, result, charge)
        result.answer_rates.append(position / (result.milliseconds - before))
    return result


def simulate_round(
    policy: Policy, traces: Mapping[int, Trace], position: int, latency: LatencyModel, result: ReplayResult, charge: bool = False
) -> int:
    """Simulate the round at ``position`` of an answer and add it to ``result``. Returns the number of tokens gained."""
    observation, started = observation_at(traces, position), thread_time()
    chosen = policy.choose(observation)
    nodes, depth, tokens = 1, 0, 1
    if chosen.nodes > 1:
        trace = traces[chosen.width]
        depth = min(chosen.depth, trace.depth)
        spec = chosen.within(chosen.nodes, depth)
        nodes = spec.nodes
        if isinstance(policy, GrowthPolicy):
            depth, nodes = _grow_tree(policy, spec, trace, position, observation.length)
        decided = thread_time()
        tokens = min(accepted_tokens(trace, position, depth, nodes) + 1, observation.room)
    else:
        decided = thread_time()
    milliseconds = latency.round(nodes, depth, chosen.width, observation.length)
    observed = thread_time()
    policy.observe(Outcome(chosen, nodes, tokens, milliseconds / 1000))
    decisions = 1000 * (decided - started + thread_time() - observed) if charge else 0.0
    result.add((nodes, depth, chosen.width if depth else 0), tokens, milliseconds + decisions)
    return tokens


def any_trace(traces: Mapping[int, Trace]) -> Trace:
    """One of an answer's traces, for what is the same in all of them: the number of tokens and the target's features."""
    return next(iter(traces.values()))


def observation_at(traces: Mapping[int, Trace], position: int) -> Observation:
    """What a policy can observe before the round at ``position``."""
    trace = any_trace(traces)
    return Observation(trace.prompt_tokens + position, len(trace) - position, lambda: trace.features[position])


def _grow_tree(policy: GrowthPolicy, spec: TreeSpec, trace: Trace, position: int, length: int) -> tuple[int, int]:
    """(depth drafted, nodes verified) of a tree that the policy stops while it grows. ``length``: tokens before the tree."""
    level = 1

    def partial_tree() -> PartialTree:
        return PartialTree(spec, level, trace.scores[position, : num_candidates(spec.width, level)], length)

    while level < spec.depth and policy.should_expand(partial_tree()):
        level += 1
    return level, min(policy.num_nodes(partial_tree()), spec.nodes, 1 + num_candidates(spec.width, level))


def num_candidates(width: int, depth: int) -> int:
    """Number of nodes that the draft scores in a tree of ``depth`` levels, without the root."""
    return width + (depth - 1) * width**2


def accepted_tokens(trace: Trace, position: int, depth: int, nodes: int) -> int:
    """Draft tokens accepted if ``depth`` levels are drafted and the best ``nodes`` - 1 candidates are verified (with the root)."""
    scores = trace.scores[position, : num_candidates(trace.width, depth)]
    for level in range(depth):
        node = trace.path[position, level]
        if node < 0:
            return level
        rank = int((scores > scores[node]).sum() + (scores[:node] == scores[node]).sum())
        if rank >= nodes - 1:
            return level
    return depth


def fixed_trees(widths: Iterable[int], depths: Iterable[int], max_nodes: int, sizes: Sequence[int] | None = None) -> list[TreeSpec]:
    """Every fixed tree to try, plain decoding included. ``sizes``: numbers of nodes that the engine has profiles for (None: any)."""
    trees = [PLAIN]
    for width in widths:
        for depth in depths:
            capacity = min(max_nodes, 1 + num_candidates(width, depth))
            trees += [TreeSpec(nodes, depth, width) for nodes in sizes or range(2, capacity + 1) if 1 < nodes <= capacity]
    return trees


def best_fixed_tree(answers: Answers, latency: LatencyModel, trees: Sequence[TreeSpec]) -> tuple[TreeSpec, ReplayResult]:
    """The fixed tree with the most tokens per millisecond, and its replay."""
    results = [(tree, replay(FixedPolicy(tree), answers, latency)) for tree in trees]
    return max(results, key=lambda result: result[1].rate)


def oracle(answers: Answers, latency: LatencyModel, trees: Sequence[TreeSpec], rate: float) -> ReplayResult:
    """A policy that knows the answer: in every round it takes the tree with the largest tokens - ``rate`` * milliseconds.

    No policy that chooses from ``trees`` does better at this exchange rate. Calling it again with the resulting rate converges to the best
    possible rate (Dinkelbach's method).
    """
    result = ReplayResult()
    for traces in answers:
        length = len(any_trace(traces))
        position = 0
        while position < length:
            observation = observation_at(traces, position)
            gains = [
                1 if tree.nodes == 1 else min(observation.room, 1 + accepted_tokens(traces[tree.width], position, tree.depth, tree.nodes))
                for tree in trees
            ]
            costs = [latency.round_with(tree, observation.length) for tree in trees]
            best = int(np.argmax(np.array(gains) - rate * np.array(costs)))
            result.add((trees[best].nodes, trees[best].depth, trees[best].width), gains[best], costs[best])
            position += gains[best]
    return result
