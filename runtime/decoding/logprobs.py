"""Log-probabilities of chosen tokens and their likeliest alternatives, from the target's logits before temperature, top-k and top-p."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .sampling import Sampler, TargetOutput

_CHUNK = 16384  # tokens of the vocabulary that are processed together: copies of the whole of it leave holes in the heap (gumbel.py)


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token and its natural log-probability. ``top``: the likeliest tokens at its position with theirs, likeliest first, the lower
    id first among equals; the chosen token may be among them."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class LogprobRecorder:
    """A Sampler that chooses as ``sampler`` does and records the log-probabilities of each choice, with ``top`` alternatives."""

    def __init__(self, sampler: Sampler, top: int) -> None:
        self._sampler, self._top = sampler, top
        self._recorded: list[TokenLogprob] = []
        self._logits: tuple[TargetOutput, np.ndarray] | None = None

    def __call__(self, output: TargetOutput, row: int, position: int) -> int:
        token = self._sampler(output, row, position)
        if self._logits is None or self._logits[0] is not output:
            self._logits = output, output.logits  # on a device this copies all of them, so only once per pass
        self._recorded.append(token_logprob(self._logits[1][row], token, self._top))
        return token

    def take(self) -> tuple[TokenLogprob, ...]:
        """What was recorded since the last call."""
        recorded, self._recorded = tuple(self._recorded), []
        return recorded


def token_logprob(logits: np.ndarray, token: int, top: int) -> TokenLogprob:
    """The log-probability of ``token`` and the ``top`` likeliest, from float32 logits [V]; sums in float64."""
    highest = logits.max()
    with np.errstate(invalid="ignore"):  # the loop checks for NaN after each pass
        total = float(highest) + math.log(sum(float(np.exp(chunk - highest).sum(dtype=np.float64)) for chunk in _chunks(logits)))
    return TokenLogprob(token, float(logits[token]) - total, tuple((each, float(logits[each]) - total) for each in _top_k(logits, top)))


def _top_k(logits: np.ndarray, count: int) -> list[int]:
    """Indices of the ``count`` largest, largest first."""
    if count == 0:
        return []
    best = np.concatenate([np.partition(chunk, -min(count, len(chunk)))[-count:] for chunk in _chunks(logits)])
    threshold = np.sort(best)[-min(count, len(best))]
    found = np.flatnonzero(logits >= threshold)
    return [int(each) for each in found[np.argsort(-logits[found], kind="stable")][:count]]


def _chunks(logits: np.ndarray) -> Iterator[np.ndarray]:
    return (logits[start : start + _CHUNK] for start in range(0, len(logits), _CHUNK))
