"""The front: takes HTTP requests and passes each to a replica. If the replica ends before it has answered, another one gets the request."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..app import HANDLERS, read_body
from ..errors import ApiError, queue_timeout, replica_lost
from ..protection.access import AccessCheck, expect_admin
from ..protection.keys import load_keys
from ..protection.limits import Limits
from ..protection.settings import Protection
from ..settings import ServerSettings
from .arguments import Arguments
from .engine import Asked
from .pages import merged

TRIES = 2  # replicas that a request is given to: one at which processes end must not end them all
CONTROL_SECONDS = 5.0  # for all replicas to say how they are
SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers", "client", "server")
PROMPTS = ("prompt", "messages", "input")


class Front:
    """Ray's ingress. ``engines``: the replicas."""

    def __init__(self, engines: DeploymentHandle, arguments: Arguments) -> None:
        self._engines, self._settings = engines, arguments.settings
        self._keys = load_keys(Path(arguments.api_key_file) if arguments.api_key_file else None, os.environ)

    def __serve_build_asgi_app__(self) -> Starlette:
        """Ray calls it for the application of this process."""
        routes = [
            Route("/healthz", self._health),
            Route("/readyz", self._health),
            Route("/metrics", self._metrics),
            Route("/admin/reload", self._reload, methods=["POST"]),
            Route("/{path:path}", PassOn(self._engines.options(stream=True).ask.remote, self._settings)),
        ]
        app = Starlette(routes=routes, exception_handlers=HANDLERS, middleware=[Middleware(AccessCheck)])
        app.state.protection, app.state.services, app.state.reading_bytes = Protection(self._keys), SimpleNamespace(limits=Limits()), 0
        return app

    async def _of_all(self, method: str) -> list[Any]:
        """What each replica says; nothing if they do not answer in time, as while one has just ended."""
        try:
            return await asyncio.to_thread(self._engines.broadcast(method).results, timeout_s=CONTROL_SECONDS)
        except (RayError, DeploymentUnavailableError, TimeoutError):
            return []

    async def _health(self, request: Request) -> Response:
        """/healthz: 200 while every replica works; /readyz: while one does."""
        each = await self._of_all("health")
        ready = (all if request.url.path == "/healthz" else any)([one["ready"] for one in each]) and bool(each)
        return JSONResponse({"ready": ready, "replicas": each}, 200 if ready else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(merged({str(process): page for process, page in await self._of_all("metrics")}), media_type=CONTENT_TYPE_LATEST)

    async def _reload(self, request: Request) -> Response:
        expect_admin(request.scope)
        message = "the tuning of this application is pinned — deploy it with the new tuning's hash"
        raise ApiError(409, message, code="tuning_unusable")


class PassOn:
    """Gives a request to a replica and its answer to the client. ``ask``: Engine.ask of some replica.

    A replica that ends before the first byte of its answer is replaced by another one, for the same request. While the answer is sent
    the client is told: it breaks off with an error after which the request may be sent again.
    """

    def __init__(self, ask: Callable[[Asked], Any], settings: ServerSettings) -> None:
        self._ask, self._settings = ask, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(Request(scope, receive), self._settings)
        asked = Asked({name: scope[name] for name in SCOPE if name in scope}, body, prompt_of(body))
        for _ in range(TRIES):
            started, whole = None, False  # the answer's kind, when its first byte has been sent; whether its last one has
            messages = self._ask(asked)
            try:
                async with asyncio.timeout(self._settings.queue_seconds):
                    await anext(messages)  # a replica has it
                async for batch in messages:
                    for message in batch:
                        await send(message)
                        started, whole = started or _kind(message), _ends(message)
                return
            except asyncio.CancelledError:  # the client has left
                messages.cancel()
                raise
            except TimeoutError:
                messages.cancel()
                raise queue_timeout(self._settings.queue_seconds, 1) from None
            except BackPressureError as error:
                raise _full(error.args[0]) from None
            except (RayError, DeploymentUnavailableError) as error:
                if whole:  # the client, who may use the connection again, must not hear of it
                    return
                if isinstance(error, RayTaskError) and not isinstance(error, RayActorError):
                    raise
                if started is not None:
                    await _break_off(scope, started, send)
                    return
        raise replica_lost()


def _full(waiting: int) -> ApiError:
    message = f"{waiting} requests wait for a replica already — send the request again later"
    return ApiError(429, message, code="queue_full", outcome="queue_full", retry_after=1)


def prompt_of(body: bytes) -> str:
    """The prompt of a request's body as text in which equal beginnings stay equal; "" if there is none."""
    try:
        fields = json.loads(body)
        return next((json.dumps(fields[name]) for name in PROMPTS if fields.get(name)), "")
    except (ValueError, AttributeError, RecursionError):  # the replica says what is wrong with it
        return ""


def _kind(message: dict[str, Any]) -> str | None:
    headers = dict(message.get("headers", ()))
    return headers.get(b"content-type", b"").decode("latin-1") if message["type"] == "http.response.start" else None


def _ends(message: dict[str, Any]) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


async def _break_off(scope: Scope, kind: str, send: Send) -> None:
    """The end of an answer that its replica did not finish. Of a whole object the connection is closed: it has no place for an error."""
    if not kind.startswith("text/event-stream"):
        raise replica_lost()
    error = replica_lost().body
    if scope["path"].endswith("/responses"):
        event = "event: error\ndata: " + json.dumps({"type": "error", "param": None, **error["error"]})
    else:
        event = "data: " + json.dumps(error)
    await send({"type": "http.response.body", "body": f"{event}\n\n".encode()})
