"""The settings of what protects the server, in one frozen place."""

from __future__ import annotations

from dataclasses import dataclass

from .keys import NO_KEYS, Keys


@dataclass(frozen=True)
class Protection:
    """Who may ask. ``keys``: who has one. ``origins``: pages of other servers that may ask, for browsers. ``hosts``: further names of this
    server on loopback; None checks none."""

    keys: Keys = NO_KEYS
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ConnectionLimits:
    """What connections may cost. Times are seconds.

    ``most``: open connections. ``head_seconds``: for a request's line and headers to arrive, and for the first byte on a new connection.
    ``idle_seconds``: between two requests of a connection. ``close_seconds``: for a client to read the rest of an answer after which the
    connection is closed. ``head_bytes``: of a request's line and headers.
    """

    most: int = 512
    head_seconds: float = 10.0
    idle_seconds: float = 75.0
    close_seconds: float = 30.0
    head_bytes: int = 16384
