"""Decodes JSON into dataclasses, strictly by their type annotations."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any


class Malformed(Exception):
    """The data does not have the expected form. The message says what is wrong and where."""


def decode(kind: Any, value: Any, where: str) -> Any:
    """``value``, as loaded from JSON, as an instance of the annotated type ``kind``. ``where``: its place in the data, for errors.

    Raises Malformed for unknown keys, missing keys without a default, wrong types and negative integers.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        required = {field.name for field in dataclasses.fields(kind) if _is_required(field)}
        if not isinstance(value, dict) or not required <= value.keys() <= hints.keys():
            keys = (required - value.keys()) | (value.keys() - hints.keys()) if isinstance(value, dict) else required
            raise Malformed(f"{where} has wrong keys: {', '.join(sorted(map(str, keys)))}")
        return kind(**{key: decode(hints[key], value[key], f"{where}.{key}") for key in hints if key in value})  # type: ignore[operator]
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is not Ellipsis and len(arguments) != len(value):
            raise Malformed(f"{where} needs {len(arguments)} entries")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(decode(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        return {key: decode(arguments[1], v, f"{where}.{key}") for key, v in value.items()}
    if isinstance(kind, types.UnionType):
        parts = [k for k in arguments if dataclasses.is_dataclass(k)]
        if parts and value is not None:
            return decode(parts[0], value, where)
        matching = [k for k in arguments if k is not Any and type(value) is k]
        if not matching:
            raise Malformed(f"{where} is {value!r}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is not Any and type(value) is not kind:
        raise Malformed(f"{where} is {value!r}, not {getattr(kind, '__name__', kind)}")
    if type(value) is int and value < 0:
        raise Malformed(f"{where} is negative")
    return value


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
