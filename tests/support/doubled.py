"""A checkpoint in float64, to compare forward passes that are equal in exact arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np


class Doubled:
    """Everything of ``single``, with tensors in float64."""

    def __init__(self, single: Any) -> None:
        self._single = single

    def __getattr__(self, name: str) -> Any:
        return getattr(self._single, name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return np.asarray(self._single.read(name, start, stop), np.float64)
