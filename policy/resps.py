"""Re-SpS (arXiv 2601.12212): a network looks at what the target felt at the last accepted position and names the next trees' shape.

With persistence its choice is kept for 30 rounds in service, 10 in training (the paper's action caching). Where the paper samples
its actions in service, the likeliest one is taken here, with hysteresis: changing trees has a price and equal logits are no reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .base import Observation, Outcome
from .inputs import CAPTURED
from .spec import PLAIN, TreeSpec

Net = Callable[[np.ndarray], np.ndarray]
"""float32 [1, F] -> logits [1, A]; any scaling of the input is inside."""

Action = tuple[int, int, int]
"""(nodes, depth, width), counted as in TreeSpec; (1, 0, 0) is plain decoding."""

HOLD, HOLD_IN_TRAINING = 30, 10  # rounds


def _features(observation: Observation) -> np.ndarray:
    return np.asarray(observation.features)


def _average(observation: Observation) -> np.ndarray:
    return np.asarray(np.asarray(observation.features, np.float32).reshape(CAPTURED, -1).mean(0))


STATES: dict[str, Callable[[Observation], np.ndarray]] = {"features": _features, "average": _average}
"""The network's input: all captured features [3H], as in the paper, or the mean of the three vectors [H], as in its code."""


def seeing(state: str) -> Callable[[Observation], np.ndarray]:
    """The function that computes ``state`` (a key of STATES) from an observation. Raises ValueError for an unknown state."""
    if state not in STATES:
        raise ValueError(f"resps' state is one of {', '.join(STATES)}, not {state!r}")
    return STATES[state]


_SMALL: tuple[Action, ...] = (
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
    """One decision per call of ``choose``. ``margin``: how far the best logit must exceed the last action's to replace it. ``temperature``
    above 0 samples from softmax(logits / temperature) instead (the paper's max-entropy variant: 1.5), drawn with ``seed``. ``state``: a
    key of STATES.

    Raises ValueError for actions that are no trees and for an unknown state, and in ``choose`` for logits that are not finite or not one
    per action.
    """

    net: Net
    actions: tuple[Action, ...]
    margin: float = 0.0
    temperature: float = 0.0
    seed: int = 0
    state: str = "features"
    _see: Callable[[Observation], np.ndarray] = field(init=False, repr=False)
    _specs: tuple[TreeSpec, ...] = field(init=False, repr=False)
    _last: int | None = field(default=None, init=False)
    _random: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.actions:
            raise ValueError("resps needs at least one action")
        self._see = seeing(self.state)
        self._specs = tuple(TreeSpec(*action) for action in self.actions)
        self._random = np.random.default_rng(self.seed)

    @property
    def trees(self) -> tuple[TreeSpec, ...]:
        return self._specs

    def begin(self) -> None:
        self._last = None

    def choose(self, observation: Observation) -> TreeSpec:
        logits = asked("resps", self.net, self._see(observation), len(self.actions))
        self._last = self._drawn(logits) if self.temperature > 0 else self._likeliest(logits)
        return self._specs[self._last]

    def observe(self, outcome: Outcome) -> None:
        """Its weights are fixed in service."""

    def _likeliest(self, logits: np.ndarray) -> int:
        best = int(np.argmax(logits))
        if self._last is not None and logits[best] - logits[self._last] <= self.margin:
            return self._last
        return best

    def _drawn(self, logits: np.ndarray) -> int:
        weights = np.exp((logits - logits.max()) / self.temperature)
        return int(self._random.choice(len(logits), p=weights / weights.sum()))


def asked(name: str, net: Net, state: np.ndarray, actions: int) -> np.ndarray:
    """The net's logits for one state [F], float64 [A]. Raises ValueError naming the policy where they are of no use."""
    logits = np.asarray(net(np.asarray(state, np.float32).reshape(1, -1)), np.float64).reshape(-1)
    if len(logits) != actions:
        raise ValueError(f"{name}: the network gives {len(logits)} logits for {actions} actions")
    if not np.isfinite(logits).all():
        raise ValueError(f"{name}: the network's logits are not finite")
    return logits


def small_actions(max_nodes: int) -> tuple[Action, ...]:
    """Trees for machines where every verified row costs, a CPU: up to 16 nodes, plain decoding first."""
    table = tuple(action for action in _SMALL if action[0] <= max_nodes)
    assert not table or TreeSpec(*table[0]) == PLAIN
    return table
