"""What a Decoder tells a listener: one CycleEvent for each cycle, of one request or of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .loop import Round


@dataclass(frozen=True)
class CycleEvent:
    """A verification pass, or a part of a prompt that was read.

    ``rounds``: what the pass did for each request, with the request's number (`Stream.number`). ``rows``: of their trees; 0 if only a
    prompt was read. ``read_rows``: tokens of a prompt that were read. ``read_seconds``: for that; 0 if
    a pass over trees read them.
    """

    rounds: tuple[tuple[int, Round], ...] = ()
    rows: int = 0
    read_rows: int = 0
    read_seconds: float = 0.0


Listener = Callable[[CycleEvent], None]
"""Called in the thread that decodes, which waits for it. It may keep the event, and must neither change its arrays nor block."""
