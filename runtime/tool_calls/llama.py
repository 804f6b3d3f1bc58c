"""Calls as Llama 3.1 to 3.3 write them: the whole answer is a JSON object."""

from __future__ import annotations

from collections.abc import Collection

from .call_format import CallFormat
from .call_objects import read_call
from .parts import Text
from .reader import Reader, Steps

_TAG = "<|python_tag|>"


def _read(reader: Reader, names: Collection[str]) -> Steps[None]:
    before = (yield from reader.opens_with(_TAG)) or ""
    while (yield from read_call(reader, names)):
        before = (yield from reader.opens_with(";", ",", _TAG)) or ""
    reader.say(Text(before))
    yield from reader.until()


LLAMA = CallFormat("llama", '{"name": "FUNCTION", "parameters": ', "}", _read, trigger=None, marks=(_TAG,), between="; ")
