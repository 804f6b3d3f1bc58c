"""What changes the target's scores along one answer: functions of the tokens so far, applied before a token is chosen.

The order is vLLM's: bad words, logit_bias and min_tokens first, then the penalties. A constraint has the last word.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

from ..sampling_params import SamplingParams


class Constrained(Protocol):
    """The form of an answer, at its present end."""

    def mask(self, scores: np.ndarray) -> None:
        """Set to minus infinity, in place, the ``scores`` [V] of tokens that may not come next."""

    def push(self, token: int) -> None:
        """``token`` was chosen."""


class PathRules:
    """The rules of one request, and the tokens that they look at.

    ``prompt``: its token ids. ``stop_tokens``: those that end the answer, which it may not have before ``params.min_tokens``.
    ``bad_words``: token sequences that it may not have. ``constraint``: its form.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        stop_tokens: Collection[int],
        bad_words: Sequence[Sequence[int]] = (),
        constraint: Constrained | None = None,
    ) -> None:
        self._params, self._constraint = params, constraint
        self._answer: list[int] = []
        self._stop_tokens = np.array(sorted(stop_tokens), np.int64)
        self._bad_tokens = np.array([word[0] for word in bad_words if len(word) == 1], np.int64)
        self._bad_words = [(list(word[:-1]), word[-1]) for word in bad_words if len(word) > 1]
        self._biased = np.array([*params.biases.keys()], np.int64)
        self._biases = np.array([*params.biases.values()], np.float64)
        self._in_answer = _Counted()
        self._in_text = _Counted(prompt if params.repetition_penalty != 1 else ())

    def apply(self, logits: np.ndarray, scores: np.ndarray) -> None:
        """Write into ``scores`` [V] what becomes of ``logits`` [V], the target's for the next token of the answer."""
        scores[:] = logits
        self._change(scores)
        if self._constraint is not None:
            self._constraint.mask(scores)
            if scores.max() == -np.inf:  # the other rules leave no token that the constraint allows
                scores[:] = logits
                self._constraint.mask(scores)

    def _change(self, scores: np.ndarray) -> None:
        scores[self._bad_tokens] = -np.inf
        for beginning, last in self._bad_words:
            if self._answer[-len(beginning) :] == beginning:
                scores[last] = -np.inf
        scores[self._biased] += self._biases
        if len(self._answer) < self._params.min_tokens:
            scores[self._stop_tokens] = -np.inf
        self._penalize(scores)

    def _penalize(self, scores: np.ndarray) -> None:
        """Penalties of tokens that occurred: for repetition in prompt and answer (Keskar et al. 2019), for frequency and presence in the
        answer."""
        params = self._params
        if params.repetition_penalty != 1:
            found = scores[self._in_text.tokens]
            scores[self._in_text.tokens] = np.where(found > 0, found / params.repetition_penalty, found * params.repetition_penalty)
        if params.frequency_penalty or params.presence_penalty:
            scores[self._in_answer.tokens] -= params.frequency_penalty * self._in_answer.counts + params.presence_penalty

    def push(self, token: int) -> None:
        """``token`` was chosen: the answer goes on behind it."""
        if self._constraint is not None:
            self._constraint.push(token)
        self._answer.append(token)
        self._in_answer.add(token)
        self._in_text.add(token)


class _Counted:
    """Distinct tokens and how often each occurred, in arrays that grow by doubling."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._places: dict[int, int] = {}
        self._tokens, self._counts = np.zeros(16, np.int64), np.zeros(16)
        for token in tokens:
            self.add(token)

    @property
    def tokens(self) -> np.ndarray:
        """int64 [n]"""
        return self._tokens[: len(self._places)]

    @property
    def counts(self) -> np.ndarray:
        """float64 [n]"""
        return self._counts[: len(self._places)]

    def add(self, token: int) -> None:
        """Count ``token`` once more."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._tokens[place] = token
        self._counts[place] += 1
