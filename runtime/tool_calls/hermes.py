"""Calls as Qwen 2.5, Qwen 3 and Hermes write them: a JSON object between tags. SmolLM2 writes a list of objects there."""

from __future__ import annotations

from collections.abc import Collection

from .call_format import CallFormat
from .call_objects import read_calls
from .parts import Text
from .reader import Reader, Steps

_BEGIN, _END = "<tool_call>", "</tool_call>"


def _read(reader: Reader, names: Collection[str]) -> Steps[None]:
    while (begun := (yield from reader.until(_BEGIN))) is not None:
        if (yield from read_calls(reader, names, (_END,))):
            yield from reader.skip(_END)
        else:
            reader.say(Text(begun))


HERMES = CallFormat(
    "hermes", '<tool_call>\n{"name": "FUNCTION", "arguments": ', "}\n</tool_call>", _read, trigger=_BEGIN, marks=(_BEGIN, _END)
)
