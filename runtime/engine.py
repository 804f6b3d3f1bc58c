"""What the runtime asks of an inference backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np


class Call(Protocol):
    """One graph prepared for fixed sizes. Fill ``inputs``, ``run()``, read ``outputs``: the same buffers every time."""

    @property
    def inputs(self) -> Mapping[str, np.ndarray]:
        """To be filled before a run."""

    @property
    def outputs(self) -> Mapping[str, np.ndarray]:
        """To be read after a run."""

    def run(self) -> None:
        """Execute; raises EngineFailure."""


class Engine(Protocol):
    """A loaded graph."""

    def prepare(self, names: Mapping[str, str] | None = None, /, **sizes: int) -> Call:
        """The call for these values of the graph's symbolic dimensions; made once, then reused.

        A tensor lies in the buffer of its own name, unless ``names`` says in which.
        """

    def close(self) -> None:
        """Free everything. May be repeated."""
