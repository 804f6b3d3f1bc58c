"""Reasoning that an answer begins with, between two marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .parts import Reasoning
from .reader import AnswerParser, Reader, Steps


@dataclass(frozen=True)
class ReasoningMarks:
    """What stands before and behind reasoning."""

    begin: str
    end: str


MARKS = {"think": ReasoningMarks("<think>", "</think>"), "mistral": ReasoningMarks("[THINK]", "[/THINK]")}
"""By the names of resps-serve's option."""


def read_reasoning(reader: Reader, marks: ReasoningMarks, opened: bool) -> Steps[None]:
    """Pass on the reasoning that the answer begins with, if it does. ``opened``: whether the prompt ends with the mark before it."""
    if (yield from reader.opens_with(marks.begin)) is None and not opened:
        return
    yield from _skip_space(reader)
    yield from reader.until(marks.end, kind=Reasoning)
    yield from _skip_space(reader)


def _skip_space(reader: Reader) -> Steps[None]:
    while not reader.text.strip() and (yield from reader.more()):
        pass
    reader.text = reader.text.lstrip()


class ReasoningTokens:
    """Counts the tokens of the reasoning, marks included. ``token_bytes``: the bytes of a token, those of special tokens too."""

    def __init__(self, marks: ReasoningMarks, opened: bool, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes, self._count, self._over = token_bytes, 0, False
        latin = ReasoningMarks(*(mark.encode().decode("latin-1") for mark in (marks.begin, marks.end)))  # bytes one by one

        def read(reader: Reader) -> Steps[None]:
            if (yield from reader.opens_with(latin.begin)) is not None or opened:
                self._found = True
                yield from reader.until(latin.end, kind=Reasoning)
            self._over = True

        self._found = opened
        self._parser = AnswerParser(read)

    def push(self, tokens: Sequence[int]) -> None:
        """``tokens`` are the next ones of the answer."""
        for token in tokens:
            if self._over:
                return
            self._parser.push(self._token_bytes(token).decode("latin-1"))
            self._count += 1

    @property
    def count(self) -> int:
        """Tokens so far."""
        return self._count if self._found else 0
