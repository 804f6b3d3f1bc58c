"""The ASGI application: routes, request bodies and error bodies. Any ASGI server can run it: it opens no socket and handles no signal."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..decoder import Decoder
from .admission.pool import Pool
from .errors import ApiError
from .metrics import Metrics
from .openai.requests import ChatBody, CompletionBody, GenerationRequest, chat_request, completion_request, parse_body
from .openai.responses import ResponseFormat
from .replica import Replica
from .reply import Reply, Services
from .settings import ServerSettings

CLOSE_SECONDS = 10.0  # for a replica's last round, after draining


def make_app(settings: ServerSettings, load: Callable[[], Sequence[Decoder]]) -> Starlette:
    """Make the application.

    ``load`` is called once, at start-up, and returns one Decoder per replica. The application closes them at shutdown. While it runs,
    ``app.state.services`` holds its Services; afterwards ``app.state.clean`` says whether every replica ended in time.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        decoders = await asyncio.to_thread(load)
        pool = Pool([Replica(each, settings.failures) for each in decoders], settings)
        app.state.services = Services(settings, pool, Metrics(pool), decoders[0], int(time.time()))
        yield
        app.state.clean = await pool.close(CLOSE_SECONDS)

    routes = [
        Route("/v1/chat/completions", _chat_completions, methods=["POST"]),
        Route("/v1/completions", _completions, methods=["POST"]),
        Route("/v1/models", _models),
        Route("/v1/models/{name:path}", _model),
        Route("/healthz", _healthz),
        Route("/metrics", _metrics),
    ]
    handlers = {ApiError: _api_error, HTTPException: _http_error, ClientDisconnect: _client_gone, Exception: _internal_error}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _chat_completions(request: Request) -> Response:
    max_messages = _services(request).settings.messages
    return await _generate(request, True, lambda body: chat_request(parse_body(ChatBody, body), max_messages))


async def _completions(request: Request) -> Response:
    return await _generate(request, False, lambda body: completion_request(parse_body(CompletionBody, body)))


async def _generate(request: Request, is_chat: bool, parse: Callable[[bytes], GenerationRequest]) -> Response:
    arrived = monotonic()
    services = _services(request)
    try:
        generation = replace(parse(await _read_body(request, services.settings)), tenant=request.headers.get("authorization"))
        _expect_model(generation.model, services.settings.model)
    except ApiError as error:
        services.metrics.requests.labels(error.outcome).inc()
        raise
    response_format = ResponseFormat(is_chat, services.settings.model, generation)
    address = request.client.host if request.client else ""
    return Reply(services, generation, response_format, arrived, generation.user or request.headers.get("authorization") or address)


async def _read_body(request: Request, settings: ServerSettings) -> bytes:
    """The request's body. Raises ApiError when it is too large or arrives too slowly."""
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


async def _models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_services(request).model_card]})


async def _model(request: Request) -> Response:
    services = _services(request)
    _expect_model(request.path_params["name"], services.settings.model)
    return JSONResponse(services.model_card)


async def _healthz(request: Request) -> Response:
    """200 while requests are accepted and every replica works, else 503."""
    pool = _services(request).pool
    body = {
        "ready": pool.healthy,
        "draining": pool.draining,
        "replicas": [each.healthy for each in pool.replicas],
        "lanes": pool.lanes,
        "running": pool.running,
        "waiting": pool.waiting.total(),
        "process": os.getpid(),  # tells apart several processes behind one address
    }
    return JSONResponse(body, 200 if pool.healthy else 503)


async def _metrics(request: Request) -> Response:
    return Response(_services(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return JSONResponse(ApiError(error.status_code, message, code="no_such_route").body, error.status_code, error.headers)


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _internal_error(request: Request, error: Exception) -> Response:
    return JSONResponse(ApiError(500, f"internal error, {type(error).__name__}", code="internal_error").body, 500)
