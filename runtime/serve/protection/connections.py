"""HTTP connections whose clients may be slow, broken or hostile: uvicorn's protocol with limits of its own."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from contextlib import suppress
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import ApiError
from .settings import ConnectionLimits

OTHER_FILES = 128  # descriptors that the process needs beside connections: engines, logs, standard streams


class Connection(H11Protocol):
    """uvicorn's protocol waits without end for the first byte of a connection and for the rest of a request's head, and takes any number
    of connections. This one has limits for both.

    When all connections are taken, the one that has waited for the rest of its request for longest is closed for a new one. So whoever
    opens connections and sends nothing keeps nobody out.
    """

    limits: ClassVar[ConnectionLimits]
    unfinished: ClassVar[dict[Connection, None]]
    """Connections without a complete request, the oldest first."""
    _head_timer: asyncio.TimerHandle | None = None
    _reading_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        if len(self.connections) > self.limits.most:
            victim = next(iter(self.unfinished), self)
            self.unfinished.pop(victim, None)
            victim.transport.abort()
            if victim is self:
                return
        self.unfinished[self] = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.unfinished.pop(self, None)
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and not self.cycle.more_body:
            self.unfinished.pop(self, None)
        if answering:
            self._head_came()  # the application limits the time of the body
        else:
            self._expect_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()
        elif self.cycle.response_complete:  # no pipelined request has begun
            self.unfinished.setdefault(self, None)
            if self.conn.their_state is h11.SEND_BODY:  # refused before it was read; the rest must not take for ever either
                self._expect_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading_timer is None:
            self._expect_reading()

    def _expect_reading(self) -> None:
        """While the client does not read: abort the connection once the application has given up and closed it, which waits for the client
        without end."""
        self._reading_timer = None
        if self.transport.is_closing():
            self._abort_later()
        elif self.flow.write_paused:
            self._reading_timer = self.loop.call_later(self.limits.close_seconds, self._expect_reading)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP request, in OpenAI's format."""
        problem = sys.exception()
        too_large = isinstance(problem, h11.RemoteProtocolError) and problem.error_status_hint == 431
        what = (
            f"the request's headers have more than {self.limits.head_bytes} bytes — send fewer" if too_large else "this is no HTTP request"
        )
        body = json.dumps(ApiError(400, what, code="invalid_http").body, ensure_ascii=False).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        with suppress(h11.LocalProtocolError):  # the answer to an earlier request is not complete
            events = (h11.Response(status_code=431 if too_large else 400, headers=headers), h11.Data(body), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()
        self._abort_later()

    def _expect_head(self) -> None:
        if self._head_timer is None:  # a byte now and then does not begin the time anew
            self._head_timer = self.loop.call_later(self.limits.head_seconds, self.transport.abort)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _abort_later(self) -> None:
        """Closing waits for the client to read what was sent, without end."""
        self.loop.call_later(self.limits.close_seconds, self.transport.abort)


def connection_class(limits: ConnectionLimits) -> type[Connection]:
    """The protocol of one server. As many connections as the process may have files open, if that is less."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.most + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limits = ConnectionLimits(**{**vars(limits), "most": max(1, min(limits.most, soft - OTHER_FILES))})
    members: dict[str, Any] = {"limits": limits, "unfinished": {}}
    return type("LimitedConnection", (Connection,), members)
