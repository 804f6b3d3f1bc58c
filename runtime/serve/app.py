"""The HTTP side: routes, bodies, errors. Knows nothing of sockets and signals, so that any ASGI server can run it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..decoder import Decoder
from .errors import ApiError
from .metrics import Metrics
from .openai_requests import ChatBody, CompletionBody, GenerationRequest, chat, completion, read
from .openai_responses import ResponseFormat
from .pool import Pool
from .replica import Replica
from .reply import Reply, Services
from .settings import ServerSettings

CLOSE_SECONDS = 10.0  # for a replica's last round, after the draining


def make_app(settings: ServerSettings, load: Callable[[], Sequence[Decoder]]) -> FastAPI:
    """The application. ``load`` is called once, when it starts up, and returns the Decoders, one a replica; they are closed at the end.

    ``app.state.house`` is there while it runs.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        decoders = await asyncio.to_thread(load)
        pool = Pool([Replica(each, settings.failures) for each in decoders], settings)
        app.state.house = Services(settings, pool, Metrics(pool), decoders[0])
        app.state.created = int(time.time())
        yield
        app.state.clean = await pool.close(CLOSE_SECONDS)

    app = FastAPI(title="resps", description=__doc__.splitlines()[0], lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _defect)

    @app.post("/v1/chat/completions", openapi_extra=_body(ChatBody))
    async def chat_completions(request: Request) -> Response:
        """The answer to a conversation."""
        return await _reply(request, True, lambda body: chat(read(ChatBody, body), settings.messages))

    @app.post("/v1/completions", openapi_extra=_body(CompletionBody))
    async def completions(request: Request) -> Response:
        """How a text goes on."""
        return await _reply(request, False, lambda body: completion(read(CompletionBody, body)))

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [_model(request)]}

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        """The one model, by its name."""
        _expect_model(name, settings.model)
        return _model(request)

    @app.get("/healthz")
    async def healthz(request: Request) -> Response:
        """200 when requests are taken and every replica works, else 503."""
        house: Services = request.app.state.house
        body = {
            "ready": house.pool.healthy,
            "draining": house.pool.draining,
            "replicas": [each.healthy for each in house.pool.replicas],
            "running": house.pool.running,
            "waiting": house.pool.waiting,
            "process": os.getpid(),  # of several behind one address
        }
        return JSONResponse(body, 200 if house.pool.healthy else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """For Prometheus."""
        house: Services = request.app.state.house
        return Response(house.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app


async def _reply(request: Request, is_chat: bool, understand: Callable[[bytes], GenerationRequest]) -> Response:
    arrived = monotonic()
    house: Services = request.app.state.house
    try:
        ask = understand(await _read(request, house.settings))
        _expect_model(ask.model, house.settings.model)
    except ApiError as error:
        house.metrics.requests.labels(error.outcome).inc()
        raise
    return Reply(house, ask, ResponseFormat(is_chat, house.settings.model, ask, house.decoder), arrived)


async def _read(request: Request, settings: ServerSettings) -> bytes:
    """The body. Raises ApiError when it is too large or does not come."""
    body = bytearray()
    try:
        async with asyncio.timeout(settings.read_seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > settings.body_bytes:
                    raise ApiError(413, f"the body is larger than {settings.body_bytes} bytes — send less text", code="body_too_large")
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {settings.read_seconds:g} s", code="body_timeout") from None
    return bytes(body)


def _expect_model(name: str | None, served: str) -> None:
    if name not in (None, served):
        raise ApiError(404, f"there is no model {name[:80]!r} here — this server has {served!r}", code="model_not_found", param="model")


def _model(request: Request) -> dict[str, Any]:
    house: Services = request.app.state.house
    about = {"id": house.settings.model, "object": "model", "created": request.app.state.created, "owned_by": "resps"}
    return {**about, "max_model_len": house.decoder.manifest.limits.context}


def _body(kind: type[ChatBody] | type[CompletionBody]) -> dict[str, Any]:
    """For /openapi.json: bodies are read by hand, so that every failure has OpenAI's form."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}}


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return JSONResponse(ApiError(error.status_code, message, code="no_such_route").body, error.status_code, error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _defect(request: Request, error: Exception) -> Response:
    return JSONResponse(ApiError(500, f"internal error, {type(error).__name__}", code="internal_error").body, 500)
