"""A socket, uvicorn, and an end in good order: stop accepting, finish what runs, exit."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import click
import uvicorn
from fastapi import FastAPI

from .app import CLOSE_SECONDS
from .errors import ServeError
from .reply import Services


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody can connect to yet: a port that is taken is known before anything is loaded. Raises ServeError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with ExitStack() as cleanup:
            listener = cleanup.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart must not wait for the old connections' end
            listener.bind((host, port))
            cleanup.pop_all()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ServeError(f"cannot listen on {host} port {port}: {reason} — choose another --host or --port") from None
    return listener


class Server(uvicorn.Server):
    """uvicorn, with our signals: the first one drains for ``drain_seconds``, the second cuts off what still runs."""

    def __init__(self, app: FastAPI, drain_seconds: float, what: str) -> None:
        grace = int(drain_seconds + CLOSE_SECONDS) + 1  # after it uvicorn drops connections, whatever hangs
        super().__init__(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=grace, lifespan="on"))
        self._app, self._drain_seconds, self._what = app, drain_seconds, what

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        click.echo(f"resps-serve: {self._what}", err=True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Instead of uvicorn's, which dies of the signal when everything is done."""
        self.loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def heard(*_: object) -> None:
            self.loop.call_soon_threadsafe(self.end)

        before = {each: signal.signal(each, heard) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def end(self) -> None:
        """Drain; cut when called again; while it still starts up, just end. In the event loop's thread."""
        house: Services | None = getattr(self._app.state, "house", None)
        if house is not None and self.should_exit:
            house.pool.cut()
        elif house is not None:
            house.pool.drain()
            self.loop.call_later(self._drain_seconds, house.pool.cut)
        self.should_exit = True
