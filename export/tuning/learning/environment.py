"""The training environments (gymnasium): Re-SpS' and LTD's decisions over recorded answers, in simulated time.

Tokens are those of `replay`, milliseconds those of the latency model. The reward of a decision is tokens - rate * milliseconds, over
exactly the rounds that the decision shaped. If ``rate`` is the best known ratio of tokens to milliseconds, the sum of these rewards is
largest where that ratio is (Dinkelbach's method). The papers' reward, a mean of per-round ratios, would favour short rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from policy import FixedPolicy, LatencyModel, PartialTree, Policy, TreeSpec
from policy.ltd import CONTINUE, clip_nodes, depth_state, size_state
from policy.resps import TRAINING_PERSISTENCE, Action, state_function

from ..replay.simulation import Answers, ReplayResult, accepted_tokens, any_trace, num_candidates, observation_at, simulate_round
from ..replay.traces import Trace

Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]
SizeRule = Callable[[PartialTree], int]
DepthRule = Callable[[PartialTree], bool]


class _ReplayEnv(gymnasium.Env):  # type: ignore[misc]
    """A position in one of the answers. ``policy_ms``: milliseconds of one call of the network. Raises ValueError without answers."""

    def __init__(self, answers: Answers, latency: LatencyModel, rate: float, policy_ms: float) -> None:
        if not answers:
            raise ValueError("an environment needs answers")
        self._answers, self._latency, self._rate, self._policy_ms = answers, latency, rate, policy_ms
        self._traces: Mapping[int, Trace] = answers[0]
        self._position = self._length

    @property
    def _length(self) -> int:
        return len(any_trace(self._traces))

    @property
    def _answer_ended(self) -> bool:
        return self._position >= self._length

    def _begin_answer(self) -> None:
        self._traces, self._position = self._answers[int(self.np_random.integers(len(self._answers)))], 0

    def _reward(self, tokens: int, milliseconds: float) -> float:
        return tokens - self._rate * milliseconds


class RespsEnv(_ReplayEnv):
    """Re-SpS: a step is a window of ``hold`` rounds with one action, an episode is one answer.

    The observation is ``state`` (a key of policy.resps.STATES) before the window. ``make_policy``: the policy that runs the rounds for an
    action's tree, such as an `Ltd` that grows within it; calls of its own networks are not charged. Raises ValueError for actions of a
    width that has no traces.
    """

    def __init__(
        self,
        answers: Answers,
        latency: LatencyModel,
        rate: float,
        actions: tuple[Action, ...],
        hold: int = TRAINING_PERSISTENCE,
        policy_ms: float = 0.0,
        make_policy: Callable[[TreeSpec], Policy] = FixedPolicy,
        state: str = "features",
    ) -> None:
        super().__init__(answers, latency, rate, policy_ms)
        if missing := {width for nodes, _, width in actions if nodes > 1} - set(self._traces):
            raise ValueError(f"no traces of width {', '.join(map(str, sorted(missing)))}")
        self._state = state_function(state)
        self._policies, self._hold = [make_policy(TreeSpec(*action)) for action in actions], hold
        self.action_space = gymnasium.spaces.Discrete(len(actions))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, self._observation().shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._begin_answer()
        return self._observation(), {}

    def step(self, action: int) -> Step:
        window, policy = ReplayResult(), self._policies[int(action)]
        policy.begin()
        while window.cycles < self._hold and not self._answer_ended:
            self._position += simulate_round(policy, self._traces, self._position, self._latency, window)
        reward = self._reward(window.tokens, window.milliseconds + self._policy_ms)
        return self._observation(), reward, self._answer_ended, False, {"window": window}

    def _observation(self) -> np.ndarray:
        """After the end of the answer, where no decision follows, that of the last position."""
        return np.asarray(self._state(observation_at(self._traces, min(self._position, self._length - 1))), np.float32)


class _LtdEnv(_ReplayEnv):
    """LTD: an episode is ``rounds`` rounds of an answer, and the next episode continues where it ended. ``tree``: the largest tree."""

    def __init__(self, answers: Answers, latency: LatencyModel, rate: float, tree: Action, rounds: int, policy_ms: float) -> None:
        super().__init__(answers, latency, rate, policy_ms)
        self._tree = TreeSpec(*tree)
        if self._tree.width not in self._traces:
            raise ValueError(f"no traces of width {self._tree.width}")
        self._rounds, self._rounds_left, self._level = rounds, 0, 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._answer_ended:
            self._begin_answer()
        self._rounds_left = self._rounds
        self._begin_round()
        return self._observation(), {}

    def _begin_round(self) -> None:
        """Grow the tree to the level of the first decision."""
        raise NotImplementedError

    def _observation(self) -> np.ndarray:
        raise NotImplementedError

    @property
    def _spec(self) -> TreeSpec:
        return self._tree.within(self._tree.nodes, self._trace.depth)

    @property
    def _trace(self) -> Trace:
        return self._traces[self._tree.width]

    def _partial_tree(self) -> PartialTree:
        position = min(self._position, len(self._trace) - 1)
        scores = self._trace.scores[position, : num_candidates(self._tree.width, self._level)]
        return PartialTree(self._spec, self._level, scores, self._trace.prompt_tokens + position)

    def _end_round(self, nodes: int, calls: int) -> Step:
        """Verify ``nodes`` nodes and give the reward of the whole round: drafting, verifying, and ``calls`` calls of the network."""
        trace, position, spec = self._trace, self._position, self._spec
        nodes = min(nodes, spec.nodes, 1 + num_candidates(spec.width, self._level))
        tokens = min(accepted_tokens(trace, position, self._level, nodes) + 1, len(trace) - position)
        milliseconds = self._latency.round(nodes, self._level, spec.width, trace.prompt_tokens + position)
        info = {"tokens": tokens, "milliseconds": milliseconds, "tree": (nodes, self._level, spec.width)}
        self._position += tokens
        self._rounds_left -= 1
        terminated = self._answer_ended or self._rounds_left == 0
        if not terminated:
            self._begin_round()
        return self._observation(), self._reward(tokens, milliseconds + calls * self._policy_ms), terminated, False, info


class LtdDepthEnv(_LtdEnv):
    """LTD's depth decision: an action says whether to draft ``every`` more levels. The reward comes when the round ends.

    ``size``: number of nodes to verify of the grown tree. Raises ValueError if the tree is too shallow for a decision.
    """

    def __init__(
        self,
        answers: Answers,
        latency: LatencyModel,
        rate: float,
        tree: Action,
        size: SizeRule,
        every: int = 1,
        rounds: int = 1,
        policy_ms: float = 0.0,
    ) -> None:
        super().__init__(answers, latency, rate, tree, rounds, policy_ms)
        if every >= min(self._tree.depth, self._trace.depth):
            raise ValueError(f"a tree of {self._tree.depth} levels leaves nothing to decide every {every}")
        self._size, self._every, self._calls = size, every, 0
        self.action_space = gymnasium.spaces.Discrete(2)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self._tree.width + 2,), np.float32)

    def step(self, action: int) -> Step:
        self._calls += 1
        if int(action) == CONTINUE:
            self._level = min(self._level + self._every, self._spec.depth)
            if self._level < self._spec.depth:
                return self._observation(), 0.0, False, False, {}
        return self._end_round(self._size(self._partial_tree()), self._calls)

    def _begin_round(self) -> None:
        self._level, self._calls = self._every, 0

    def _observation(self) -> np.ndarray:
        return depth_state(self._partial_tree(), self._tree)


class LtdSizeEnv(_LtdEnv):
    """LTD's size decision: an action is one of ``sizes``, the number of nodes to verify. ``depth``: whether to draft another level."""

    def __init__(
        self,
        answers: Answers,
        latency: LatencyModel,
        rate: float,
        tree: Action,
        sizes: tuple[int, ...],
        depth: DepthRule,
        rounds: int = 1,
        policy_ms: float = 0.0,
    ) -> None:
        super().__init__(answers, latency, rate, tree, rounds, policy_ms)
        self._sizes, self._depth = sizes, depth
        self.action_space = gymnasium.spaces.Discrete(len(sizes))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self._tree.capacity + 1,), np.float32)

    def step(self, action: int) -> Step:
        return self._end_round(clip_nodes(self._partial_tree(), self._sizes[int(action)], self._sizes), 1)

    def _begin_round(self) -> None:
        self._level = 1
        while self._level < self._spec.depth and self._depth(self._partial_tree()):
            self._level += 1

    def _observation(self) -> np.ndarray:
        return size_state(self._partial_tree(), self._tree)
