"""Calls as Mistral's models write them: a list of JSON objects behind a mark, or, since the end of 2024, a name and arguments behind each
mark."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from .call_format import CallFormat
from .call_objects import read_arguments, read_calls
from .parts import Call, Text
from .reader import Reader, Steps

_CALLS, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_LONGEST_HEAD = 250  # characters before the arguments


def _read(reader: Reader, names: Collection[str]) -> Steps[None]:
    while (begun := (yield from reader.until(_CALLS))) is not None:
        if not ((yield from read_calls(reader, names, (_CALLS,))) or (yield from _read_named(reader, names))):
            reader.say(Text(begun))


def _read_named(reader: Reader, names: Collection[str]) -> Steps[bool]:
    while (at := reader.text.find("{", 0, _LONGEST_HEAD)) < 0 and len(reader.text) < _LONGEST_HEAD and (yield from reader.more()):
        pass
    name = "|".join(map(re.escape, names))
    head = re.fullmatch(rf"\s*({name})\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\])?\s*", reader.text[: max(at, 0)])
    if head is None:
        return False
    reader.take(at)
    reader.say(Call(head[1]))
    yield from read_arguments(reader, (_CALLS,))
    return True


MISTRAL_ARGS = CallFormat(
    "mistral-args",
    "[TOOL_CALLS]FUNCTION[ARGS]",
    "",
    _read,
    trigger=_CALLS,
    marks=(_CALLS, _ID, _ARGUMENTS),
    between="",
    id_size=9,
)
MISTRAL = replace(
    MISTRAL_ARGS,
    name="mistral",
    opening="[TOOL_CALLS] [",
    head='{"name": "FUNCTION", "arguments": ',
    tail="}",
    between=", ",
    closing="]",
)
