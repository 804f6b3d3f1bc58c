"""The real server on a free port, in a thread, over a test's Decoders."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from runtime.serve.app import NO_LOGS, NO_PROTECTION, make_app
from runtime.serve.observation.settings import Observation
from runtime.serve.protection.settings import ConnectionLimits, Protection
from runtime.serve.reply import Services
from runtime.serve.server import DEFAULT_LIMITS, Server, Tls
from runtime.serve.settings import ServerSettings
from runtime.serve.sockets import bind


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    server: Server
    http: httpx.Client

    @property
    def services(self) -> Services:
        services: Services = self.server._app.state.services
        return services

    def metric(self, line: str) -> float:
        """The value of ``name{labels}`` on /metrics; 0 if it is missing."""
        lines = [each for each in self.http.get("/metrics").text.splitlines() if each.rpartition(" ")[0] == line]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0

    def wait(self, line: str, value: float) -> None:
        """Wait until the metric ``line`` has this value."""
        until(lambda: self.metric(line) == value)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll until ``condition()`` is true. Fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.005)


@contextmanager
def serving(
    decoders: Sequence[Any],
    *,
    protection: Protection = NO_PROTECTION,
    observation: Observation = NO_LOGS,
    limits: ConnectionLimits = DEFAULT_LIMITS,
    tls: Tls | None = None,
    **settings: Any,
) -> Iterator[Served]:
    """Serve ``decoders``, one per replica. ``settings``: fields of ServerSettings that differ from the default."""
    server_settings = ServerSettings(**{"model": "toy", "drain_seconds": 5.0, **settings})
    with bind("127.0.0.1", 0) as listener:
        app = make_app(server_settings, lambda: list(decoders), protection, observation)
        server = Server(app, server_settings.drain_seconds, "toy", limits, tls)
        thread = threading.Thread(target=server.run, args=([listener],))
        url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        thread.start()
        try:
            until(lambda: server.started)
            with httpx.Client(base_url=url, timeout=20, verify=tls is None) as http:
                yield Served(url, server, http)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
            assert not server.server_state.connections
