"""Numbers of a config.json, checked one by one: a wrong one would make an engine whose answers are NaN or nonsense."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_SIZE = 1 << 22  # upper bound of every size in a config; no model comes near it


def whole(config: Mapping[str, Any], key: str, default: int | None = None, *, least: int = 1, most: int = MAX_SIZE) -> int:
    """A whole number between two bounds. ``default``: for a key that is missing or null; without it such a key is an error. Raises
    KeyError, or ValueError with the key and its value."""
    value = _given(config, key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value != math.floor(value):
        raise ValueError(f"{key} is {value!r}, not a whole number")
    if not least <= value <= most:
        raise ValueError(f"{key} is {value!r}, which is out of range")
    return int(value)


def positive(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A finite number above zero; the rest as in `whole`."""
    value = _given(config, key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{key} is {value!r}, not a number above zero")
    return float(value)


def _given(config: Mapping[str, Any], key: str, default: float | None) -> Any:
    if default is None:
        return config[key]
    value = config.get(key)
    return default if value is None else value
