"""When a request's turn is, and who asks."""

from __future__ import annotations

from dataclasses import dataclass

from ..protection.keys import ANYONE, Key


@dataclass(frozen=True)
class Turn:
    """What decides when a request's turn is. ``priority``: the lowest number goes first. ``client``: requests of the same client wait for
    each other, not for other clients'. ``deadline``: by the clock ``monotonic``. ``seconds``: from the arrival to the deadline.
    ``tokens``: how many must come before the deadline, or the request is of no use. ``key``: who asks. ``digest``: SHA-256 of the
    request's body."""

    client: str
    priority: int
    deadline: float
    seconds: float
    tokens: int = 1
    key: Key = ANYONE
    digest: bytes = b""
