"""Incremental detokenization, and the search for stop strings in the text."""

from __future__ import annotations

from dataclasses import dataclass

from .tokenizer import Tokenizer


class Detokenizer:
    """Turns tokens into text one by one, withholding incomplete characters.

    The returned pieces plus ``flush()`` equal decoding all tokens at once. Each token decodes only a short window again.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._window_start = 0  # first token of the window
        self._returned = 0  # tokens whose text was returned

    def push(self, token: int) -> str:
        """The text that ``token`` completes; it may be empty."""
        self._tokens.append(token)
        before = self._tokenizer.decode(self._tokens[self._window_start : self._returned])
        now = self._tokenizer.decode(self._tokens[self._window_start :])
        if now.endswith("\ufffd") or len(now) <= len(before):
            return ""
        self._window_start, self._returned = self._returned, len(self._tokens)
        return now[len(before) :]

    def flush(self) -> str:
        """The withheld rest: bytes that did not become a character."""
        before = self._tokenizer.decode(self._tokens[self._window_start : self._returned])
        now = self._tokenizer.decode(self._tokens[self._window_start :])
        self._window_start = self._returned = len(self._tokens)
        return now[len(before) :]


@dataclass
class StopStrings:
    """Cuts text before the first stop string, withholding text that may be the beginning of one. ``found``: whether one is complete."""

    stops: tuple[str, ...]
    withheld: str = ""
    found: bool = False

    def push(self, piece: str) -> str:
        """The text that may be shown after ``piece``. Sets ``found`` when a stop string is complete."""
        if not self.stops:
            return piece
        self.withheld += piece
        positions = [position for stop in self.stops if (position := self.withheld.find(stop)) >= 0]
        if positions:
            shown, self.withheld, self.found = self.withheld[: min(positions)], "", True
            return shown
        end = len(self.withheld) - max(_overlap(self.withheld, stop) for stop in self.stops)
        shown, self.withheld = self.withheld[:end], self.withheld[end:]
        return shown

    def flush(self) -> str:
        """The withheld rest, which did not become a stop string."""
        shown, self.withheld = self.withheld, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
