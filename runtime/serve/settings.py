"""What the server was told to do, in one frozen place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """``model``: the name that requests may give. ``queue``: how many requests may wait beside those that run; ``queue_seconds``: how long
    one may wait; ``request_seconds``: from arrival to the last token; ``drain_seconds``: for what runs when the server is told to end;
    ``read_seconds``, ``write_seconds``: for a body to come in, and for a client to take what is sent to it. ``body_bytes``, ``messages``:
    the largest request. ``failures``: engine failures in a row after which a replica is given up."""

    model: str
    queue: int = 64
    queue_seconds: float = 30.0
    request_seconds: float = 300.0
    drain_seconds: float = 30.0
    read_seconds: float = 30.0
    write_seconds: float = 30.0
    body_bytes: int = 1 << 20
    messages: int = 256
    failures: int = 3
