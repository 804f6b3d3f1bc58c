"""What two engines wrote, and what they thought: tokens and logits against tokens and logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def first_difference(mine: Sequence[int], other: Sequence[int]) -> int | None:
    """Where two answers part; the shorter one's length where one only goes on; None for the same."""
    for place, (left, right) in enumerate(zip(mine, other, strict=False)):
        if left != right:
            return place
    return None if len(mine) == len(other) else min(len(mine), len(other))


def same_prefix(mine: Sequence[int], other: Sequence[int]) -> float:
    """Share of the longer answer that both begin with; 1 for the same."""
    longest = max(len(mine), len(other))
    place = first_difference(mine, other)
    return 1.0 if place is None or not longest else place / longest


def margin(logits: np.ndarray, tokens: tuple[int, int]) -> float:
    """How far apart one position's logits [vocabulary] hold two tokens."""
    return float(abs(logits[tokens[0]] - logits[tokens[1]]))


@dataclass(frozen=True)
class Closeness:
    """``mean_kl``: of the second's distribution from the first's, in nats; ``agreement``: share of positions with the same favourite."""

    mean_kl: float
    agreement: float
    positions: int


def closeness(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Closeness:
    """Over (reference, other) logits [positions, vocabulary] of each answer. Raises ValueError for shapes that do not match."""
    divergences, same = [], []
    for reference, other in pairs:
        if reference.shape != other.shape:
            raise ValueError(f"logits of shape {other.shape} beside a reference of {reference.shape}")
        p, q = _log_softmax(reference), _log_softmax(other)
        divergences.append((np.exp(p) * (p - q)).sum(axis=-1))
        same.append(reference.argmax(axis=-1) == other.argmax(axis=-1))
    every, equal = np.concatenate(divergences), np.concatenate(same)
    return Closeness(float(every.mean()), float(equal.mean()), len(every))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
