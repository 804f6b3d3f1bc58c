"""Decisions over recorded answers as gymnasium environments: the tokens are those of `replay`, the milliseconds the surface's.

Rewards are tokens - rate x milliseconds, of everything that the decision shaped and of nothing else. Their sum is largest where the ratio
of the sums is, if ``rate`` is the best ratio known (Dinkelbach); a mean of ratios, the papers' reward, would favour short rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from policy import FixedPolicy, LatencyModel, PartialTree, Policy, TreeSpec
from policy.ltd import CONTINUE, clip_nodes, depth_state, size_state
from policy.resps import TRAINING_PERSISTENCE, Action, state_function

from ..replay.simulation import Answers, Replay, candidates, observed, play_round, reached
from ..replay.traces import Trace

Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]
SizeRule = Callable[[PartialTree], int]
DepthRule = Callable[[PartialTree], bool]


class _Walk(gymnasium.Env):  # type: ignore[misc]
    """A place in one of the answers. ``policy_ms``: what one call of the network costs."""

    def __init__(self, answers: Answers, latency: LatencyModel, rate: float, policy_ms: float) -> None:
        if not answers:
            raise ValueError("an environment needs answers")
        self._answers, self._latency, self._rate, self._policy_ms = answers, latency, rate, policy_ms
        self._traces: Mapping[int, Trace] = answers[0]
        self._place = len(self._some)

    @property
    def _some(self) -> Trace:
        return next(iter(self._traces.values()))

    @property
    def _ended(self) -> bool:
        return self._place >= len(self._some)

    def _begin_answer(self) -> None:
        self._traces, self._place = self._answers[int(self.np_random.integers(len(self._answers)))], 0

    def _reward(self, tokens: int, milliseconds: float) -> float:
        return tokens - self._rate * milliseconds


class RespsWindow(_Walk):
    """Re-SpS: a step is ``hold`` rounds with one action, an episode one answer. Observes ``state`` (of STATES) before the window.

    ``under``: who plays the rounds that an action's tree bounds, such as an `Ltd` with that tree as its slow choice; the calls of its own
    networks are not charged. Raises ValueError for actions of a width that has no traces.
    """

    def __init__(
        self,
        answers: Answers,
        latency: LatencyModel,
        rate: float,
        actions: tuple[Action, ...],
        hold: int = TRAINING_PERSISTENCE,
        policy_ms: float = 0.0,
        under: Callable[[TreeSpec], Policy] = FixedPolicy,
        state: str = "features",
    ) -> None:
        super().__init__(answers, latency, rate, policy_ms)
        if missing := {width for nodes, _, width in actions if nodes > 1} - set(self._traces):
            raise ValueError(f"no traces of width {', '.join(map(str, sorted(missing)))}")
        self._state = state_function(state)
        self._players, self._hold = [under(TreeSpec(*action)) for action in actions], hold
        self.action_space = gymnasium.spaces.Discrete(len(actions))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, self._features().shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._begin_answer()
        return self._features(), {}

    def step(self, action: int) -> Step:
        window, player = Replay(), self._players[int(action)]
        player.begin()
        while window.cycles < self._hold and not self._ended:
            self._place += play_round(player, self._traces, self._some, self._place, self._latency, window)
        return self._features(), self._reward(window.tokens, window.milliseconds + self._policy_ms), self._ended, False, {"window": window}

    def _features(self) -> np.ndarray:
        """After the answer's end, which nobody acts upon, those of its last place."""
        return np.asarray(self._state(observed(self._some, min(self._place, len(self._some) - 1))), np.float32)


class _Rounds(_Walk):
    """LTD: round after round of an answer, ``rounds`` of them an episode; the next episode goes on where the last one ended."""

    def __init__(self, answers: Answers, latency: LatencyModel, rate: float, tree: Action, rounds: int, policy_ms: float) -> None:
        super().__init__(answers, latency, rate, policy_ms)
        self._tree = TreeSpec(*tree)
        if self._tree.width not in self._traces:
            raise ValueError(f"no traces of width {self._tree.width}")
        self._rounds, self._left, self._level = rounds, 0, 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._ended:
            self._begin_answer()
        self._left = self._rounds
        self._plant()
        return self._observed(), {}

    def _plant(self) -> None:
        """Grow the tree to where the first decision is due."""
        raise NotImplementedError

    def _observed(self) -> np.ndarray:
        raise NotImplementedError

    @property
    def _spec(self) -> TreeSpec:
        return self._tree.within(self._tree.nodes, self._trace.depth)

    @property
    def _trace(self) -> Trace:
        return self._traces[self._tree.width]

    def _partial_tree(self) -> PartialTree:
        place = min(self._place, len(self._trace) - 1)
        scores = self._trace.scores[place, : candidates(self._tree.width, self._level)]
        return PartialTree(self._spec, self._level, scores, self._trace.prompt + place)

    def _verify(self, nodes: int, calls: int) -> Step:
        """End the round with its whole reward: ``calls`` of the network, drafting, verifying."""
        trace, place, spec = self._trace, self._place, self._spec
        nodes = min(nodes, spec.nodes, 1 + candidates(spec.width, self._level))
        gained = min(reached(trace, place, self._level, nodes) + 1, len(trace) - place)
        cost = self._latency.round(nodes, self._level, spec.width, trace.prompt + place)
        info = {"tokens": gained, "milliseconds": cost, "tree": (nodes, self._level, spec.width)}
        self._place += gained
        self._left -= 1
        finished = self._ended or self._left == 0
        if not finished:
            self._plant()
        return self._observed(), self._reward(gained, cost + calls * self._policy_ms), finished, False, info


class LtdDepth(_Rounds):
    """A step says whether to draft another level (0 stops); ``size``: what is verified in the end. Nothing is rewarded before that."""

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
                return self._observed(), 0.0, False, False, {}
        return self._verify(self._size(self._partial_tree()), self._calls)

    def _plant(self) -> None:
        self._level, self._calls = self._every, 0

    def _observed(self) -> np.ndarray:
        return depth_state(self._partial_tree(), self._tree)


class LtdSize(_Rounds):
    """A step says how many nodes of a grown tree are verified, one of ``sizes``; ``depth``: whether it grows another level."""

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
        return self._verify(clip_nodes(self._partial_tree(), self._sizes[int(action)], self._sizes), 1)

    def _plant(self) -> None:
        self._level = 1
        while self._level < self._spec.depth and self._depth(self._partial_tree()):
            self._level += 1

    def _observed(self) -> np.ndarray:
        return size_state(self._partial_tree(), self._tree)
