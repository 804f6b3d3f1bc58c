"""A constraint along one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ParameterError


class ConstraintState:
    """A constraint at the end of an answer. ``matcher``: llguidance's, at the beginning. For one thread at a time."""

    def __init__(self, matcher: Any, vocab: int) -> None:
        self._matcher, self._vocab = matcher, vocab
        self._excluded: np.ndarray | None = None  # of the next token, bool [V]

    def mask(self, scores: np.ndarray) -> None:
        """Set to minus infinity, in place, the ``scores`` [V] of tokens that may not come next. After its end only stop tokens may. Raises
        ParameterError if the grammar became too complex."""
        if self._excluded is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._expect_fine()
            self._excluded = np.unpackbits(bits, count=self._vocab, bitorder="little") == 0
        np.copyto(scores, -np.inf, where=self._excluded)

    def push(self, token: int) -> None:
        """``token``, which the mask allows, comes next."""
        self._matcher.consume_token(token)
        self._excluded = None
        self._expect_fine()

    def forced(self) -> list[int]:
        """Tokens that come next because their bytes must. They are as the tokenizer divides these bytes, and so is the mask."""
        return [int(token) for token in self._matcher.compute_ff_tokens()]

    def allowed(self, tokens: Sequence[int]) -> int:
        """How many of ``tokens`` may come next, one after the other."""
        return int(self._matcher.validate_tokens(list(tokens)))

    def _expect_fine(self) -> None:
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().split())[:300]
            raise ParameterError(f"constraint: it became too complex for this answer: {reason}", "constraint")
