"""The real server on a free port, in a thread, over Decoders that a test brings."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from runtime.serve.app import make_app
from runtime.serve.reply import Services
from runtime.serve.server import Server, bind
from runtime.serve.settings import ServerSettings


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    server: Server
    http: httpx.Client

    @property
    def house(self) -> Services:
        house: Services = self.server._app.state.house
        return house

    def metric(self, line: str) -> float:
        """The value of ``name{labels}`` on /metrics; 0 where it is not."""
        found = [each for each in self.http.get("/metrics").text.splitlines() if each.rpartition(" ")[0] == line]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    def wait(self, line: str, value: float) -> None:
        """Until that metric has that value."""
        until(lambda: self.metric(line) == value)


def until(true: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@contextmanager
def serving(decoders: Sequence[Any], **settings: Any) -> Iterator[Served]:
    """``settings``: those of Settings that are not the default."""
    given = ServerSettings(**{"model": "toy", "drain_seconds": 5.0, **settings})
    with bind("127.0.0.1", 0) as listener:
        server = Server(make_app(given, lambda: list(decoders)), given.drain_seconds, "toy")
        thread = threading.Thread(target=server.run, args=([listener],))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.start()
        try:
            until(lambda: server.started)
            with httpx.Client(base_url=url, timeout=20) as http:
                yield Served(url, server, http)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
