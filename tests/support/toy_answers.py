"""Made-up traces for which the best action is known, and simple networks for them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from export.tuning.learning.nets import Mlp
from export.tuning.replay.simulation import num_candidates
from export.tuning.replay.traces import Trace
from policy import LatencyModel, Observation, PartialTree, TreeSpec
from policy.resps import Action

# Milliseconds: a row costs 1, a level 1, and a round of plain decoding 11, so a token is worth about 10.
LATENCY = LatencyModel((1, 16), (128, 4096), ((10.0, 25.0), (10.0, 25.0)), (1, 4), (1, 6), ((1.0, 6.0), (1.0, 6.0)), 1.0)
TREE: Action = (7, 6, 1)
ACTIONS: tuple[Action, ...] = ((1, 0, 0), (3, 2, 1), TREE)


def toy_answers(count: int = 4, length: int = 60) -> list[Mapping[int, Trace]]:
    """Traces of chains (width 1): in every second answer all draft tokens are accepted, in the others none. Features and scores show
    which."""
    answers: list[Mapping[int, Trace]] = []
    for index in range(count):
        easy = index % 2 == 0
        scores = np.tile(np.arange(1, 7, dtype=np.float32) * (-0.1 if easy else -3.0), (length, 1))
        path = np.tile(np.arange(6, dtype=np.int16) if easy else np.full(6, -1, np.int16), (length, 1))
        features = np.tile(np.array([1, -1, 1, -1] if easy else [-1, 1, 1, -1], np.float16), (length, 1))
        trace = Trace(20, 1, scores, np.arange(1, 7, dtype=np.int8), path, features)
        answers.append({1: trace})
    return answers


def observation(features: object = (1.0, -1.0, 1.0, -1.0)) -> Observation:
    return Observation(100, 50, lambda: np.asarray(features, np.float16))


def partial_tree_of(spec: TreeSpec, level: int, seed: int = 0, length: int = 256) -> PartialTree:
    scores = -np.random.default_rng(seed).exponential(2, num_candidates(spec.width, level)).astype(np.float32)
    return PartialTree(spec, level, scores, length)


def constant(*logits: float) -> object:
    return lambda x: np.array([logits], np.float32)


def depth_net(x: np.ndarray) -> np.ndarray:
    """A depth network: it continues while the best score of the level is above -1.5."""
    return np.array([[0.0, x[0, 0] + 1.5]], np.float32)


def size_net(x: np.ndarray) -> np.ndarray:
    """A size network whose logits are the scores of the first level and one of the second."""
    return x[:, :4]


def random_net(sizes: tuple[int, ...], activation: str, seed: int = 0) -> Mlp:
    random = np.random.default_rng(seed)
    pairs = pairwise(sizes)
    layers = tuple(
        (random.standard_normal((b, a)).astype(np.float32) / a**0.5, random.standard_normal(b).astype(np.float32)) for a, b in pairs
    )
    return Mlp(layers, activation)  # type: ignore[arg-type]
