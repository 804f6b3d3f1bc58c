"""Reads calls that are JSON objects with a name and arguments, and arguments that are JSON objects."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from .parts import Arguments, Call
from .reader import Reader, Steps

_KEYS = ("name", "arguments", "parameters", "type", "id")  # that a call may begin with
_FIRST_KEY = re.compile(r'\s*\{\s*"([^"]*)"')
_OUTSIDE = frozenset(' \t\r\n{}[]:,"0123456789+-.eEtrufalsn')  # characters of JSON outside strings


class _Cursor:
    """Moves over JSON that comes in pieces."""

    def __init__(self, depth: int = 0) -> None:
        self.depth, self.inside, self._escaped = depth, False, False  # brackets and string that are open

    def pass_over(self, character: str) -> bool:
        """Whether ``character`` ends the value."""
        if self._escaped:
            self._escaped = False
        elif self.inside:
            self._escaped, self.inside = character == "\\", character != '"'
        elif character == '"':
            self.inside = True
        elif character in "{[":
            self.depth += 1
        elif character in "}]":
            self.depth -= 1
            return self.depth <= 0
        return False


def read_calls(reader: Reader, names: Collection[str], ends: Sequence[str] = ()) -> Steps[bool]:
    """Pass on a call of one of ``names``, or a list of such calls. False, and nothing is removed, if something else comes next. ``ends``:
    marks that end an object that lacks brackets."""
    listed = yield from reader.opens_with("[")
    if not (yield from read_call(reader, names, ends)):
        reader.text = (listed or "") + reader.text
        return False
    while listed:
        before = (yield from reader.opens_with(",", "]")) or "]"
        if before.endswith("]"):
            break
        if not (yield from read_call(reader, names, ends)):
            reader.text = before + reader.text
            break
    return True


def read_call(reader: Reader, names: Collection[str], ends: Sequence[str] = ()) -> Steps[bool]:
    """Like `read_calls`, for one call. Its arguments are passed on as they come if its name comes first, else when it is whole."""
    name = "|".join(map(re.escape, names))
    head = re.compile(
        rf'\s*\{{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"({name})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)'
    )
    cursor, at = _Cursor(), 0
    while True:
        if begun := head.match(reader.text):
            reader.take(begun.end())
            reader.say(Call(begun[1]))
            yield from read_arguments(reader, ends)
            yield from _skip_rest(reader, ends)
            return True
        key = _FIRST_KEY.match(reader.text)
        if reader.text.lstrip()[:1] not in ("", "{") or (key and key[1] not in _KEYS):
            return False
        while at < len(reader.text):
            character = reader.text[at]
            if not cursor.inside and character not in _OUTSIDE:
                return False
            at += 1
            if cursor.pass_over(character):
                return _whole_call(reader, names, at)
        if not (yield from reader.more()):
            return False


def _whole_call(reader: Reader, names: Collection[str], size: int) -> bool:
    found = _parsed(reader.text[:size])
    if not isinstance(found, dict) or found.get("name") not in names:
        return False
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):  # some models write the arguments' text
        arguments = _parsed(arguments)
    if not isinstance(arguments, dict):
        return False
    reader.take(size)
    reader.say(Call(found["name"]))
    reader.say(Arguments(json.dumps(arguments)))
    return True


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_arguments(reader: Reader, ends: Sequence[str] = ()) -> Steps[None]:
    """Pass on the object that comes next, up to its end or to one of the marks ``ends`` outside its strings."""
    yield from _read_object(reader, _Cursor(), ends, shown=True)


def _skip_rest(reader: Reader, ends: Sequence[str]) -> Steps[None]:
    """Remove the end of a call's object, after its arguments, with keys that follow them."""
    following = (yield from reader.opens_with("}", ",")) or ""
    if following.endswith(","):
        yield from _read_object(reader, _Cursor(1), ends, shown=False)


def _read_object(reader: Reader, cursor: _Cursor, ends: Sequence[str], shown: bool) -> Steps[None]:
    done = False
    while not done:
        at = 0
        while at < len(reader.text) and not done:
            if not cursor.inside and any(end.startswith(reader.text[at : at + len(end)]) for end in ends):
                break
            done = cursor.pass_over(reader.text[at])
            at += 1
        ended = any(reader.text.startswith(end, at) for end in ends)
        taken = reader.take(at)
        if shown:
            reader.say(Arguments(taken))
        if ended or not (done or (yield from reader.more())):
            return
