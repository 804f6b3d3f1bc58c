"""Compares two engines by their tokens and their logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def first_difference(mine: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first different token; the shorter length if one is a prefix of the other; None if they are equal."""
    for index, (left, right) in enumerate(zip(mine, other, strict=False)):
        if left != right:
            return index
    return None if len(mine) == len(other) else min(len(mine), len(other))


def same_prefix(mine: Sequence[int], other: Sequence[int]) -> float:
    """Length of the common prefix over the longer length; 1 for equal answers."""
    longest = max(len(mine), len(other))
    index = first_difference(mine, other)
    return 1.0 if index is None or not longest else index / longest


def margin(logits: np.ndarray, tokens: tuple[int, int]) -> float:
    """|logit difference| of two tokens at one position, ``logits`` [vocabulary]."""
    return float(abs(logits[tokens[0]] - logits[tokens[1]]))


@dataclass(frozen=True)
class Closeness:
    """``mean_kl``: KL divergence of the second engine from the first, in nats; ``agreement``: share of positions with the same argmax."""

    mean_kl: float
    agreement: float
    positions: int


def closeness(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Closeness:
    """``pairs``: (reference, other) logits [positions, vocabulary] of each answer. Raises ValueError if the shapes differ."""
    divergences, same = [], []
    for reference, other in pairs:
        if reference.shape != other.shape:
            raise ValueError(f"logits of shape {other.shape} beside a reference of {reference.shape}")
        p, q = _log_softmax(reference), _log_softmax(other)
        divergences.append((np.exp(p) * (p - q)).sum(axis=-1))
        same.append(reference.argmax(axis=-1) == other.argmax(axis=-1))
    divergence, agree = np.concatenate(divergences), np.concatenate(same)
    return Closeness(float(divergence.mean()), float(agree.mean()), len(divergence))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
