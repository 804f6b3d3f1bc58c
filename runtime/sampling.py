"""How the next token is chosen from the target's scores: greedy, or by inverse CDF with one seeded uniform per position."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .engine import Engine

Pick = Callable[["Scores", int, int], int]
"""(scores, row, position) -> token: the target's choice after ``row``, for the sequence position ``position``."""


@dataclass(frozen=True)
class Scores:
    """Results of one target pass; views into the engine's buffers, valid until its next pass.

    next_token int64 [r] (the argmax), logits float32 [r, V], features [n, 3H].
    """

    next_token: np.ndarray
    logits: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k 0 and top_p 1 are off. ``seed`` None draws a fresh one. Raises ValueError."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 100):
            raise ValueError(f"temperature must be between 0 and 100, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be between 0 and 2**64 - 1, not {self.seed}")


def greedy(scores: Scores, row: int, position: int) -> int:
    """The argmax, computed in the graph."""
    return int(scores.next_token[row])


def uniforms(seed: int | None, positions: int) -> np.ndarray:
    """One uniform per sequence position, float32 [positions], multiples of 2**-23 below 1.

    Keyed by position and not by row, so a seed gives the same text whatever the tree. 23 bits: u * total stays below total in float32, so
    the inverse CDF always finds a token.
    """
    bits = np.random.Generator(np.random.Philox(seed)).integers(0, 2**23, positions)
    return (bits / 2**23).astype(np.float32)


class InverseCdf:
    """Samples with the `sample` graph, one row at a time: only rows on the accepted path are ever drawn."""

    def __init__(self, engine: Engine, sampling: Sampling, positions: int) -> None:
        self._call = engine.prepare(n=1)
        self._sampling = sampling
        self._uniforms = uniforms(sampling.seed, positions)

    def __call__(self, scores: Scores, row: int, position: int) -> int:
        inputs, sampling = self._call.inputs, self._sampling
        inputs["logits"][0, 0] = scores.logits[row]
        inputs["temperature"][0], inputs["top_k"][0], inputs["top_p"][0] = sampling.temperature, sampling.top_k, sampling.top_p
        inputs["uniform"][0] = self._uniforms[position]
        self._call.run()
        return int(self._call.outputs["token"][0, 0])
