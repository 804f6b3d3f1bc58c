"""Random values for the fuzzers: JSON values, texts, and small changes to valid JSON and valid bytes."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import strategies as st

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64, 10**30])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6
)
any_text = st.text(st.characters(exclude_categories=()), max_size=60)  # also lone surrogates
special = st.sampled_from(
    ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "</s>", "{{ x }}", "{% raw %}", "\0", "\ufffd", "\u200d", "e\u0301"]
)
texts = st.lists(any_text | special, max_size=6).map("".join)


def changed(data: Any, steps: list[int], action: int, value: Any) -> Any:
    """``data`` with one entry, found by ``steps``, replaced, removed, negated, multiplied or joined by another one."""
    if isinstance(data, (dict, list)) and data and steps:
        keys: Any = list(data) if isinstance(data, dict) else range(len(data))
        key = keys[steps[0] % len(keys)]
        copy = data.copy()
        if len(steps) == 1 and action == 0:
            del copy[key]
        elif len(steps) == 1 and action == 1 and isinstance(copy, dict):
            copy[f"{key}x"] = value
        else:
            copy[key] = changed(data[key], steps[1:], action, value)
        return copy
    return -data if action == 2 and isinstance(data, int) else data * 1000 if action == 3 and isinstance(data, int) else value


def edited(data: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    """``data`` after each edit: a piece overwrites bytes, is inserted, or everything after the place is dropped."""
    for place, piece, kind in changes:
        at = place % (len(data) + 1)
        data = data[:at] + piece + data[at + len(piece) * (kind == 0) :] if kind < 2 else data[:at]
    return data


numbers = st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1])
pieces = (
    st.binary(max_size=9) | numbers.map(lambda number: struct.pack("<Q", number)) | st.sampled_from([struct.pack("<I", 9), b"\xff" * 4])
)
edits = st.lists(st.tuples(st.integers(0, 1 << 12), pieces, st.sampled_from([0, 0, 0, 1, 1, 2])), min_size=1, max_size=4)
