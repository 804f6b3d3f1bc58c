"""Re-SpS (arXiv 2601.12212): a network reads the target's hidden state at the last accepted token and picks the next tree shape.

With action persistence a choice lasts 30 rounds in service and 10 in training (the paper's action caching). The paper samples actions in
service. Here the likeliest action is taken; a ``margin`` above 0 keeps the last one while logits are nearly equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .base import Observation, Outcome
from .inputs import CAPTURED_LAYERS
from .spec import PLAIN, TreeSpec

Net = Callable[[np.ndarray], np.ndarray]
"""A network: float32 [1, F] -> logits [1, A]. Any scaling of its input is part of it."""

Action = tuple[int, int, int]
"""(nodes, depth, width), counted as in TreeSpec; (1, 0, 0) is plain decoding."""

PERSISTENCE, TRAINING_PERSISTENCE = 30, 10
"""Rounds that an action lasts, in service and in training."""


def _features(observation: Observation) -> np.ndarray:
    return np.asarray(observation.features)


def _average(observation: Observation) -> np.ndarray:
    return np.asarray(np.asarray(observation.features, np.float32).reshape(CAPTURED_LAYERS, -1).mean(0))


STATES: dict[str, Callable[[Observation], np.ndarray]] = {"features": _features, "average": _average}
"""The network's input: all captured features [3H], as in the paper, or the mean of the three vectors [H], as in its code."""


def state_function(state: str) -> Callable[[Observation], np.ndarray]:
    """The function that computes ``state`` (a key of STATES) from an observation. Raises ValueError for an unknown state."""
    if state not in STATES:
        raise ValueError(f"resps' state is one of {', '.join(STATES)}, not {state!r}")
    return STATES[state]


_CPU_ACTIONS: tuple[Action, ...] = (
    (1, 0, 0),
    (2, 1, 2),
    (3, 1, 2),
    (3, 2, 2),
    (4, 1, 3),
    (4, 2, 2),
    (4, 3, 2),
    (5, 2, 3),
    (6, 3, 2),
    (6, 3, 3),
    (6, 5, 2),
    (8, 3, 3),
    (8, 4, 2),
    (10, 4, 3),
    (12, 5, 3),
    (12, 6, 2),
    (16, 6, 3),
)


@dataclass
class Resps:
    """The Re-SpS policy: every call of ``choose`` runs the network once.

    ``margin``: how far the best logit must exceed the last action's logit to replace it. ``temperature``: above 0, sample from
    softmax(logits / temperature) instead (the paper's max-entropy variant uses 1.5), seeded by ``seed``. ``state``: a key of STATES.

    Raises ValueError for no actions, invalid trees or an unknown state. ``choose`` raises it for logits that are not finite or not one per
    action.
    """

    net: Net
    actions: tuple[Action, ...]
    margin: float = 0.0
    temperature: float = 0.0
    seed: int = 0
    state: str = "features"
    _state_of: Callable[[Observation], np.ndarray] = field(init=False, repr=False)
    _specs: tuple[TreeSpec, ...] = field(init=False, repr=False)
    _last_action: int | None = field(default=None, init=False)
    _random: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.actions:
            raise ValueError("resps needs at least one action")
        self._state_of = state_function(self.state)
        self._specs = tuple(TreeSpec(*action) for action in self.actions)
        self._random = np.random.default_rng(self.seed)

    @property
    def trees(self) -> tuple[TreeSpec, ...]:
        return self._specs

    def begin(self) -> None:
        self._last_action = None

    def choose(self, observation: Observation) -> TreeSpec:
        logits = network_logits("resps", self.net, self._state_of(observation), len(self.actions))
        self._last_action = self._sample(logits) if self.temperature > 0 else self._argmax(logits)
        return self._specs[self._last_action]

    def observe(self, outcome: Outcome) -> None:
        """Nothing to do: the weights are fixed in service."""

    def _argmax(self, logits: np.ndarray) -> int:
        """The best action, or the last one if the best is within ``margin`` of it."""
        best = int(np.argmax(logits))
        if self._last_action is not None and logits[best] - logits[self._last_action] <= self.margin:
            return self._last_action
        return best

    def _sample(self, logits: np.ndarray) -> int:
        weights = np.exp((logits - logits.max()) / self.temperature)
        return int(self._random.choice(len(logits), p=weights / weights.sum()))


def network_logits(policy: str, net: Net, state: np.ndarray, num_actions: int) -> np.ndarray:
    """Run ``net`` on one state [F]; returns logits, float64 [num_actions]. Raises ValueError, which names ``policy``, for logits that are
    not finite or have another length."""
    logits = np.asarray(net(np.asarray(state, np.float32).reshape(1, -1)), np.float64).reshape(-1)
    if len(logits) != num_actions:
        raise ValueError(f"{policy}: the network gives {len(logits)} logits for {num_actions} actions")
    if not np.isfinite(logits).all():
        raise ValueError(f"{policy}: the network's logits are not finite")
    return logits


def cpu_actions(max_nodes: int) -> tuple[Action, ...]:
    """Plain decoding and trees of up to ``max_nodes`` nodes (16 at most), for CPUs, where every verified row costs time."""
    table = tuple(action for action in _CPU_ACTIONS if action[0] <= max_nodes)
    assert not table or TreeSpec(*table[0]) == PLAIN
    return table
