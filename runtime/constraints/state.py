"""A constraint along one answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ParameterError

SECONDS, TOKEN_SECONDS = 1.0, 0.005
"""Of a processor, that the masks of an answer may take: so many, and for each of its tokens so many more. Usual ones take less than a
hundredth of that; ambiguous grammars take ever more, while the other lanes wait."""


class ConstraintState:
    """A constraint at the end of an answer. For one thread at a time.

    ``matcher``: llguidance's, at the beginning. Its copies share a lexer, whose limits end all of them: what other answers say, and drafted
    tokens that the target never chooses, use them up as well. ``another``: one with a lexer of its own, which takes over then and
    follows this answer alone.
    """

    def __init__(self, matcher: Any, vocab: int, another: Callable[[], Any]) -> None:
        self._matcher, self._vocab, self._another = matcher, vocab, another
        self._alone = False
        self._tokens: list[int] = []
        self._seconds = 0.0
        self._excluded: np.ndarray | None = None  # of the next token, bool [V]

    def mask(self, scores: np.ndarray) -> None:
        """Set to minus infinity, in place, the ``scores`` [V] of tokens that may not come next. After its end only stop tokens may. Raises
        ParameterError if the grammar became too complex."""
        if self._excluded is None:
            bits = np.frombuffer(self._follow(lambda matcher: matcher.compute_bitmask()), np.uint8)
            self._excluded = np.unpackbits(bits, count=self._vocab, bitorder="little") == 0
        np.copyto(scores, -np.inf, where=self._excluded)

    def push(self, token: int) -> None:
        """``token``, which the mask allows, comes next."""
        self._follow(lambda matcher: matcher.consume_token(token))
        self._tokens.append(token)
        self._excluded = None

    def forced(self) -> list[int]:
        """Tokens that come next because their bytes must. They are as the tokenizer divides these bytes, and so is the mask."""
        return [int(token) for token in self._matcher.compute_ff_tokens()]

    def allowed(self, tokens: Sequence[int]) -> int:
        """How many of ``tokens`` may come next, one after the other. With a lexer of its own it does not look, which could end the answer,
        and returns their number."""
        return len(tokens) if self._alone else int(self._matcher.validate_tokens(list(tokens)))

    def _follow(self, step: Callable[[Any], Any]) -> Any:
        """What ``step`` gives for the matcher, or for another one if this one is dead."""
        began = time.thread_time()
        found = step(self._matcher)
        if self._matcher.is_error() and not self._alone:
            self._matcher, self._alone = self._another(), True
            for token in self._tokens:
                self._matcher.consume_token(token)
            found = step(self._matcher)
        self._seconds += time.thread_time() - began
        if self._matcher.is_error():
            raise _too_complex(" ".join(self._matcher.get_error().split())[:300])
        if self._seconds > SECONDS + TOKEN_SECONDS * len(self._tokens):
            raise _too_complex(f"its masks took {self._seconds:.1f} s")
        return found


def _too_complex(reason: str) -> ParameterError:
    return ParameterError(f"constraint: it became too complex for this answer: {reason}", "constraint")
