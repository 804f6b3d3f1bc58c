"""The server's settings, in one frozen place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Limits of one server. All times are seconds.

    ``model``: the model name that requests may give. ``queue``: how many requests may wait beside the running ones. ``queue_seconds``: how
    long one may wait. ``request_seconds``: from arrival to the last token. ``drain_seconds``: for the running requests at shutdown.
    ``read_seconds``: for a request body to arrive. ``write_seconds``: for a client to read one piece of its answer. ``body_bytes``: the
    largest request body; ``all_bodies_bytes``: of all that are being read together. ``messages``: most messages of a conversation.
    ``failures``: consecutive engine failures after which a replica is given up. ``target_ms_per_token``: milliseconds; while the running
    requests of a replica get their tokens more slowly, it takes no further one. ``tool_calls``, ``reasoning``: how the model writes calls
    and reasoning, by the names of runtime/tool_calls/choose.py; None: what its template and its tokens tell.
    """

    model: str
    queue: int = 64
    queue_seconds: float = 30.0
    request_seconds: float = 300.0
    drain_seconds: float = 30.0
    read_seconds: float = 30.0
    write_seconds: float = 30.0
    body_bytes: int = 1 << 20
    all_bodies_bytes: int = 1 << 26
    messages: int = 256
    failures: int = 3
    target_ms_per_token: float | None = None
    tool_calls: str | None = None
    reasoning: str | None = None
