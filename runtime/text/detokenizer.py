"""Incremental detokenization, and the search for stop strings in the text."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from .tokenizer import Tokenizer


class Detokenizer:
    """Turns tokens into text one by one, withholding incomplete characters.

    ``prompt``: the ids before the first token. SentencePiece decoders omit a space where a text begins, which is after a prompt without
    text. ``shown``: texts of special tokens that are not left out, by id. The returned pieces plus ``flush()`` equal the decoded bytes of
    all tokens. A token costs the same wherever it stands.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), shown: Mapping[int, str] = MappingProxyType({})) -> None:
        self._bytes = tokenizer.token_bytes
        self._first = not any(map(self._bytes, prompt))
        self._utf8 = getincrementaldecoder("utf-8")("replace")
        self._shown = shown

    def push(self, token: int) -> str:
        """The text that ``token`` completes; it may be empty."""
        if token in self._shown:
            return self.flush() + self._shown[token]
        added = self._bytes(token, first=self._first)
        self._first = self._first and not self._bytes(token)  # a space that begins the text adds nothing, but it is the first token
        return self._utf8.decode(added)

    def flush(self) -> str:
        """The withheld rest: bytes that did not become a character."""
        return self._utf8.decode(b"", final=True)


_MARKS = 0xD800, 0xDFFF  # surrogates, which no text contains: each stands for a special token in stop strings


class StopStrings:
    """Cuts text before the first stop string, withholding text that may be the beginning of one. ``found``: whether one is complete.

    ``hidden``: texts of special tokens, which the text leaves out, by id. A stop string that contains one also matches the token itself;
    ``marks`` has those tokens.
    """

    def __init__(self, stops: Sequence[str], hidden: Mapping[int, str] = MappingProxyType({})) -> None:
        self.found = False
        self._withheld = ""
        self.marks: dict[int, str] = {}
        marked = list(stops)
        for token, text in sorted(hidden.items(), key=lambda item: -len(item[1])):
            if text and any(text in stop for stop in marked) and _MARKS[0] + len(self.marks) <= _MARKS[1]:
                mark = self.marks[token] = chr(_MARKS[0] + len(self.marks))
                marked = [stop.replace(text, mark) for stop in marked]
        self._stops = tuple(dict.fromkeys((*stops, *marked)))  # both: a model may also write the text of a special token letter by letter
        self._visible = str.maketrans(dict.fromkeys(self.marks.values(), ""))

    def push(self, piece: str, token: int | None = None) -> str:
        """The text that may be shown after ``piece``, which ``token`` completed. Sets ``found`` when a stop string is complete."""
        if not self._stops:
            return piece
        self._withheld += piece + ("" if token is None else self.marks.get(token, ""))
        positions = [position for stop in self._stops if (position := self._withheld.find(stop)) >= 0]
        if positions:
            shown, self._withheld, self.found = self._withheld[: min(positions)], "", True
            return shown.translate(self._visible)
        end = len(self._withheld) - max(overlap(self._withheld, stop) for stop in self._stops)
        shown, self._withheld = self._withheld[:end], self._withheld[end:]
        return shown.translate(self._visible)

    def flush(self) -> str:
        """The withheld rest, which did not become a stop string."""
        shown, self._withheld = self._withheld, ""
        return shown.translate(self._visible)


def overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
