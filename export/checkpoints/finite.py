"""Finds NaN and infinities, in any type that weights are stored in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError

# Type -> the bits that are all set in NaN and infinities, and in no other number. float8_e4m3fn has no infinities.
_MASKS = {"float16": 0x7C00, "bfloat16": 0x7F80, "float8_e4m3fn": 0x7F, "float8_e5m2": 0x7C, "float8_e8m0fnu": 0xFF}


def is_finite(numbers: np.ndarray) -> bool:
    """Whether none of the numbers is NaN or infinite; true of integers."""
    if (mask := _MASKS.get(numbers.dtype.name)) is not None:  # much faster than ml_dtypes' own test
        unsigned: type[np.unsignedinteger[Any]] = np.uint16 if numbers.itemsize == 2 else np.uint8
        bits: NDArray[np.unsignedinteger[Any]] = np.ascontiguousarray(numbers).view(unsigned)
        return not bool(((bits & mask) == mask).any())
    if numbers.dtype.kind != "f":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        total = numbers.sum()
    return bool(np.isfinite(total) or np.isfinite(numbers).all())  # a sum of large numbers may be infinite


def expect_finite(numbers: np.ndarray, name: str, file: Path) -> None:
    """Raises CheckpointError if one of the numbers is NaN or infinite."""
    if not is_finite(numbers):
        raise CheckpointError(
            f"{file} has numbers in {name} that are not finite (NaN or infinity), which no --precision mends — download it again, or take "
            "other weights"
        )
