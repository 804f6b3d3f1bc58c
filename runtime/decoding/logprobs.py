"""What the target thought of the tokens it chose: log-probabilities before temperature and cuts, on request."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .sampling import Pick, Scores

_PART = 16384  # tokens of the vocabulary that are looked at together: copies of all of it leave holes in the heap (draws.py)


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token with its natural log-probability, and the likeliest tokens of its position with theirs, the likeliest first; of equal
    ones the one with the lower id. The chosen one may be among them."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class LogprobRecorder:
    """Chooses as ``pick`` does and notes the log-probabilities of each choice."""

    def __init__(self, pick: Pick, top: int) -> None:
        self._pick, self._top = pick, top
        self._noted: list[TokenLogprob] = []
        self._seen: tuple[Scores, np.ndarray] | None = None

    def __call__(self, scores: Scores, row: int, position: int) -> int:
        token = self._pick(scores, row, position)
        if self._seen is None or self._seen[0] is not scores:
            self._seen = scores, scores.logits  # from a device they are all copied, once a pass
        self._noted.append(token_logprob(self._seen[1][row], token, self._top))
        return token

    def taken(self) -> tuple[TokenLogprob, ...]:
        """What was noted since the last call."""
        noted, self._noted = tuple(self._noted), []
        return noted


def token_logprob(logits: np.ndarray, token: int, top: int) -> TokenLogprob:
    """``logits``: float32 [V]. The sum runs in float64."""
    highest = logits.max()
    with np.errstate(invalid="ignore"):  # what is no number is noticed by who asked for the choice
        total = float(highest) + math.log(sum(float(np.exp(part - highest).sum(dtype=np.float64)) for part in _parts(logits)))
    return TokenLogprob(token, float(logits[token]) - total, tuple((each, float(logits[each]) - total) for each in _largest(logits, top)))


def _largest(logits: np.ndarray, count: int) -> list[int]:
    """Indices of the ``count`` largest, in order."""
    if count == 0:
        return []
    best = np.concatenate([np.partition(part, -min(count, len(part)))[-count:] for part in _parts(logits)])
    least = np.sort(best)[-min(count, len(best))]
    found = np.flatnonzero(logits >= least)
    return [int(each) for each in found[np.argsort(-logits[found], kind="stable")][:count]]


def _parts(logits: np.ndarray) -> Iterator[np.ndarray]:
    return (logits[start : start + _PART] for start in range(0, len(logits), _PART))
