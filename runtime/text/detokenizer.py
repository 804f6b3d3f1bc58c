"""Tokens into text as they come, and stop strings in it."""

from __future__ import annotations

from dataclasses import dataclass

from .tokenizer import Text


class Detokenizer:
    """Turns tokens into text as they come, holding back characters that are not complete yet.

    Joined pieces plus ``flush()`` equal decoding all tokens at once. Only a short window is decoded again for each token.
    """

    def __init__(self, text: Text) -> None:
        self._text = text
        self._tokens: list[int] = []
        self._start = 0  # first token of the window
        self._shown = 0  # tokens whose text was given out

    def push(self, token: int) -> str:
        """The text that ``token`` completes, perhaps empty."""
        self._tokens.append(token)
        before = self._text.decode(self._tokens[self._start : self._shown])
        now = self._text.decode(self._tokens[self._start :])
        if now.endswith("\ufffd") or len(now) <= len(before):
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        return now[len(before) :]

    def flush(self) -> str:
        """What was held back: bytes that never became a character."""
        before = self._text.decode(self._tokens[self._start : self._shown])
        now = self._text.decode(self._tokens[self._start :])
        self._start = self._shown = len(self._tokens)
        return now[len(before) :]


@dataclass
class StopStrings:
    """Cuts text before the first stop string, holding back what may still become one."""

    stops: tuple[str, ...]
    held: str = ""
    found: bool = False

    def push(self, piece: str) -> str:
        """Text that is safe to show; sets ``found`` when a stop string is complete."""
        if not self.stops:
            return piece
        self.held += piece
        places = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if places:
            shown, self.held, self.found = self.held[: min(places)], "", True
            return shown
        keep = max(_overlap(self.held, stop) for stop in self.stops)
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return shown

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        shown, self.held = self.held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
