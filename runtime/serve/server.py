"""uvicorn with a graceful shutdown: stop accepting, finish the running requests, exit."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from ..standard_streams import say
from .app import CLOSE_SECONDS
from .errors import ApiError, ServeError
from .protection.connections import connection_class
from .protection.settings import ConnectionLimits
from .reload import reload_tuning
from .reply import Services

DEFAULT_LIMITS = ConnectionLimits()


@dataclass(frozen=True)
class Tls:
    """PEM files. ``certificate``: with those between it and the root. ``key``: None if it is in the same file. Raises ServeError if they
    cannot be used."""

    certificate: Path
    key: Path | None

    def __post_init__(self) -> None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password=lambda: "")
        except OSError as error:  # an SSLError is one, too
            reason = error.strerror or type(error).__name__
            raise ServeError(f"cannot use the certificate {self.certificate}: {reason} — give PEM files that belong together") from None


class Server(uvicorn.Server):
    """uvicorn with our signal handling.

    The first SIGTERM, SIGINT or SIGHUP drains the server for ``drain_seconds``; the second cancels the running requests. Without a terminal
    SIGHUP reloads the tuning instead. ``ready``: the line that is printed when the server listens.
    """

    def __init__(
        self, app: Starlette, drain_seconds: float, ready: str, limits: ConnectionLimits = DEFAULT_LIMITS, tls: Tls | None = None
    ) -> None:
        grace = int(drain_seconds + CLOSE_SECONDS) + 1  # uvicorn then drops the connections, whatever hangs
        # always what plain uvicorn brings, so that other installed packages (uvloop, httptools, websockets) change nothing
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=connection_class(limits),
            ws="none",
            lifespan="on",
            log_level="error",  # a warning for each malformed request would fill the log for whoever sends them
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=grace,
            timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]  # a float does as well
            h11_max_incomplete_event_size=limits.head_bytes,
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
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

        def on_hangup(*_: object) -> None:
            self.loop.call_soon_threadsafe(self._reload)

        handlers = {signal.SIGTERM: on_signal, signal.SIGINT: on_signal}
        if signal.getsignal(signal.SIGHUP) not in (signal.SIG_IGN, None):  # nohup ignores it
            handlers[signal.SIGHUP] = on_signal if _has_terminal() else on_hangup
        previous = {each: signal.signal(each, handler) for each, handler in handlers.items()}
        try:
            yield
        finally:
            for each, handler in previous.items():
                signal.signal(each, handler)

    def _reload(self) -> None:
        services: Services | None = getattr(self._app.state, "services", None)
        if services is not None and not self.should_exit:
            self._reloading = self.loop.create_task(_reload_and_say(services))  # kept: the loop holds its tasks weakly

    def begin_shutdown(self) -> None:
        """Drain; on the second call cancel the running requests. During start-up just exit. Call it in the event loop's thread."""
        services: Services | None = getattr(self._app.state, "services", None)
        if services is not None and self.should_exit:
            services.pool.cancel_running()
        elif services is not None:
            services.pool.drain()
            self.loop.call_later(self._drain_seconds, services.pool.cancel_running)
        self.should_exit = True


def _has_terminal() -> bool:
    """Whether SIGHUP would mean that the process's terminal was closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY))
    except OSError:
        return False
    return True


async def _reload_and_say(services: Services) -> None:
    try:
        in_use = await reload_tuning(services)
    except ApiError as error:
        say(f"resps-serve: {error}")
    except Exception as error:  # the server goes on
        say(f"resps-serve: the tuning was not changed: internal error, {type(error).__name__}")
    else:
        say(f"resps-serve: the tuning was reloaded, its policies are {', '.join(in_use['policies'])}")
