"""Calls as DeepSeek V3 and R1 write them, a name and JSON in a block of code between marks, and as V3.1 does, without the block."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from .call_format import CallFormat
from .call_objects import read_arguments
from .parts import Call, Text
from .reader import Reader, Steps

_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _NAME, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_LONGEST_HEAD = 250  # characters before the arguments


def _read(reader: Reader, names: Collection[str]) -> Steps[None]:
    while (begun := (yield from reader.until(_CALLS, _CALL))) is not None:
        if begun.endswith(_CALLS):
            begun += (yield from reader.opens_with(_CALL)) or ""
        if not (yield from _read_named(reader, names)):
            reader.say(Text(begun))


def _read_named(reader: Reader, names: Collection[str]) -> Steps[bool]:
    while (at := reader.text.find("{", 0, _LONGEST_HEAD)) < 0 and len(reader.text) < _LONGEST_HEAD and (yield from reader.more()):
        pass
    name = "|".join(map(re.escape, names))
    head = re.fullmatch(rf"\s*(?:function\s*{_NAME}\s*)?({name})\s*(?:{_NAME})?\s*(?:```(?:json)?)?\s*", reader.text[: max(at, 0)])
    if head is None:
        return False
    reader.take(at)
    reader.say(Call(head[1]))
    yield from read_arguments(reader, (_CALL_END, "```"))
    for mark in ("```", _CALL_END, _CALLS_END):
        yield from reader.skip(mark)
    return True


DEEPSEEK = CallFormat(
    "deepseek",
    f"{_CALL}function{_NAME}FUNCTION\n```json\n",
    f"\n```{_CALL_END}",
    _read,
    trigger=_CALLS,
    marks=(_CALLS, _CALLS_END, _CALL, _NAME, _CALL_END),
    opening=_CALLS,
    closing=_CALLS_END,
)
DEEPSEEK_V31 = replace(DEEPSEEK, name="deepseek-v3.1", head=f"{_CALL}FUNCTION{_NAME}", tail=_CALL_END, between="")
