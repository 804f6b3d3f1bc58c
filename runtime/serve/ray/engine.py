"""A replica: the whole server over one Decoder with lanes, without a socket. Ray starts it, asks for its health and replaces it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..app import health_of, make_app
from ..errors import LOG
from ..load import load_replicas
from ..protection.keys import load_keys
from ..protection.settings import Protection
from .arguments import Arguments
from .pins import expect_pinned


@dataclass(frozen=True)
class Asked:
    """A request on its way from the front to a replica. ``scope``: ASGI's, of HTTP. ``prompt``: its text, by which Ray's router chooses."""

    scope: dict[str, Any]
    body: bytes
    prompt: str


class Engine:
    """Raises EngineDirError if the machine's engine directory is not the pinned one, and what a Decoder raises; Ray shows it as the
    deployment's status."""

    async def __init__(self, arguments: Arguments) -> None:  # type: ignore[misc]  # Ray awaits it
        expect_pinned(Path(arguments.engine_dir), arguments.pins)
        keys = load_keys(Path(arguments.api_key_file) if arguments.api_key_file else None, os.environ)
        options = {name: getattr(arguments, name) for name in ("threads", "policy", "draft")}
        app = make_app(
            arguments.settings, lambda: load_replicas(Path(arguments.engine_dir), 1, arguments.most_lanes, **options), Protection(keys)
        )
        self._life, self._answers = app.router.lifespan_context(app), set[asyncio.Task[None]]()
        await self._life.__aenter__()
        self._app = app

    async def ask(self, asked: Asked) -> AsyncIterator[list[MutableMapping[str, Any]]]:
        """ASGI's messages of the response, those that are there together; first none, as a sign that the request has arrived. When the
        caller leaves, the request is cancelled as by a client that leaves."""
        messages: asyncio.Queue[MutableMapping[str, Any] | None] = asyncio.Queue()
        left, unread = asyncio.Event(), [{"type": "http.request", "body": asked.body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if unread:
                return unread.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def answer() -> None:
            try:
                await self._app(dict(asked.scope), receive, messages.put)
            except Exception:  # its 500 has been sent
                LOG.exception("a request failed")
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(answer())
        self._answers.add(task)  # the loop holds its tasks weakly
        task.add_done_callback(self._answers.discard)
        try:
            yield []
            over = False
            while not over:
                batch = [await messages.get()]
                while not messages.empty():
                    batch.append(messages.get_nowait())
                over = batch[-1] is None
                yield [each for each in batch if each is not None]
        finally:
            left.set()

    def health(self) -> dict[str, Any]:
        """What /healthz says of this process."""
        return health_of(self._app.state.services.pool)

    def metrics(self) -> tuple[int, str]:
        """The number of this process, and its page of /metrics."""
        return os.getpid(), self._app.state.services.metrics.text().decode()

    def check_health(self) -> None:
        """Raises RuntimeError if the engine has been given up; Ray then replaces this process."""
        if not self._app.state.services.pool.healthy:
            raise RuntimeError("the engine was given up after repeated failures")

    async def __del__(self) -> None:
        """Ray calls it once, when the running requests have ended or their time is over."""
        if hasattr(self, "_app"):
            await self._life.__aexit__(None, None, None)
