"""Reads an answer that comes in pieces. Readers of formats are generators: they yield where they need more text, so that they are written
as if the whole text was there, and what they find does not depend on where the text was cut."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from ..text.detokenizer import overlap
from .parts import Arguments, Call, Part, Reasoning, Text

T = TypeVar("T")
Steps = Generator[None, None, T]
"""What a function with this result type yields while it waits for text."""


class Reader:
    """The text of an answer that is not divided into parts yet. ``most_calls``: further calls are left out."""

    def __init__(self, most_calls: int | None = None) -> None:
        self.text, self.ended = "", False
        self.parts: list[Part] = []
        self._most_calls, self._calls = most_calls, 0
        self._silent = False  # whether nothing was said since the last call

    def say(self, part: Part) -> None:
        """Pass on ``part``."""
        if isinstance(part, Call):
            self._calls += 1
            self._silent = True
        elif not part.text:
            return
        elif isinstance(part, Text):
            self._silent = False
        left_out = isinstance(part, Call | Arguments) and self._most_calls is not None and self._calls > self._most_calls
        if not left_out:
            self.parts.append(part)

    def take(self, count: int) -> str:
        """Remove ``count`` characters at the front."""
        taken, self.text = self.text[:count], self.text[count:]
        return taken

    def more(self) -> Steps[bool]:
        """Wait for more text. False if the answer has ended."""
        size = len(self.text)
        while len(self.text) == size and not self.ended:
            yield
        return len(self.text) > size

    def opens_with(self, *marks: str) -> Steps[str | None]:
        """The mark that comes next, with the white space before it; both are removed. None, and nothing is removed, if something else comes
        next."""
        while True:
            rest = self.text.lstrip()
            for mark in marks:
                if rest.startswith(mark):
                    return self.take(len(self.text) - len(rest) + len(mark))
            if (rest and not any(mark.startswith(rest) for mark in marks)) or not (yield from self.more()):
                return None

    def skip(self, mark: str) -> Steps[None]:
        """Remove ``mark`` if it comes next, or the beginning of it that ends the answer."""
        if (yield from self.opens_with(mark)) is None and self.ended and mark.startswith(self.text.lstrip()):
            self.text = ""

    def until(self, *marks: str, kind: Callable[[str], Text | Reasoning] = Text) -> Steps[str | None]:
        """Pass on what comes before the first of ``marks``. Returns that mark with the white space before it, which are removed; None at
        the end of the answer. White space after the last call is no text."""
        while True:
            found = [(at, mark) for mark in marks if (at := self.text.find(mark)) >= 0]
            if found:
                at, mark = min(found)
                before = self.text[:at].rstrip()
                self.say(kind(self.take(len(before))))
                return self.take(at - len(before) + len(mark))
            beginning = max((overlap(self.text, mark) for mark in marks), default=0)
            self.say(kind(self.take(len(self.text[: len(self.text) - beginning].rstrip()))))
            if not (yield from self.more()):
                if self.text.strip() or not self._silent:
                    self.say(kind(self.take(len(self.text))))
                return None


class AnswerParser:
    """Divides one answer into parts. ``read``: a format's reader."""

    def __init__(self, read: Callable[[Reader], Steps[None]], most_calls: int | None = None) -> None:
        self._reader = Reader(most_calls)
        self._steps = read(self._reader)
        next(self._steps, None)

    def push(self, text: str) -> list[Part]:
        """The parts that ``text`` completes. What may be the beginning of a mark is withheld."""
        self._reader.text += text
        next(self._steps, None)
        return self._taken()

    def flush(self) -> list[Part]:
        """The rest, at the end of the answer."""
        self._reader.ended = True
        for _ in self._steps:
            pass
        return self._taken()

    def _taken(self) -> list[Part]:
        parts, self._reader.parts = self._reader.parts, []
        return parts
