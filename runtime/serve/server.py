"""The listening socket, and uvicorn with a graceful shutdown: stop accepting, finish the running requests, exit."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import uvicorn
from starlette.applications import Starlette

from ..standard_streams import say
from .app import CLOSE_SECONDS
from .errors import ServeError
from .reply import Services


def bind(host: str, port: int) -> socket.socket:
    """Bind the socket without listening yet, so a taken port is reported before the engine is loaded. Raises ServeError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with ExitStack() as cleanup:
            listener = cleanup.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restarted server can bind while old connections close
            listener.bind((host, port))
            cleanup.pop_all()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ServeError(f"cannot listen on {host} port {port}: {reason} — choose another --host or --port") from None
    return listener


class Server(uvicorn.Server):
    """uvicorn with our signal handling.

    The first SIGTERM, SIGINT or SIGHUP drains the server for ``drain_seconds``; the second cancels the running requests. ``ready``: the
    line that is printed when the server listens.
    """

    def __init__(self, app: Starlette, drain_seconds: float, ready: str) -> None:
        grace = int(drain_seconds + CLOSE_SECONDS) + 1  # uvicorn then drops the connections, whatever hangs
        # always what plain uvicorn brings, so that other installed packages (uvloop, httptools, websockets) change nothing
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=grace,
        )
        super().__init__(config)
        self._app, self._drain_seconds, self._ready = app, drain_seconds, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        say(f"resps-serve: {self._ready}")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Replaces uvicorn's method, which raises the signal again after the shutdown and so ends the process with an error."""
        self.loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(*_: object) -> None:
            self.loop.call_soon_threadsafe(self.begin_shutdown)

        hangup = () if signal.getsignal(signal.SIGHUP) in (signal.SIG_IGN, None) else (signal.SIGHUP,)  # nohup ignores it
        previous = {each: signal.signal(each, on_signal) for each in (signal.SIGTERM, signal.SIGINT, *hangup)}
        try:
            yield
        finally:
            for each, handler in previous.items():
                signal.signal(each, handler)

    def begin_shutdown(self) -> None:
        """Drain; on the second call cancel the running requests. During start-up just exit. Call it in the event loop's thread."""
        services: Services | None = getattr(self._app.state, "services", None)
        if services is not None and self.should_exit:
            services.pool.cancel_running()
        elif services is not None:
            services.pool.drain()
            self.loop.call_later(self._drain_seconds, services.pool.cancel_running)
        self.should_exit = True
