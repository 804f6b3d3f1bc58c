"""The ASGI application: routes, request bodies and error bodies. Any ASGI server can run it: it opens no socket and handles no signal."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from time import monotonic
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..decoder import Decoder
from ..errors import EngineFailure
from ..tool_calls.choose import choose
from .admission.pool import Pool
from .errors import ApiError, as_api_error
from .metrics import Metrics
from .observation.access_log import AccessLog
from .observation.crash import CrashReports, versions
from .observation.json_lines import JsonLines
from .observation.settings import Observation
from .observation.traces import Traces, exporting_provider
from .openai.body import parse_body
from .openai.requests import ChatBody, CompletionBody, GenerationRequest, chat_request, completion_request, expect_model
from .openai.response_bodies import ResponseBody, response_request
from .openai.response_writer import ResponseWriter
from .openai.responses import ResponseFormat
from .openai.writer import AnswerWriter
from .page.hub import Hub
from .page.routes import page_routes
from .protection.access import SCOPE_KEY, AccessCheck, expect_admin
from .protection.keys import ANYONE, Key
from .protection.settings import Protection
from .protection.sources import SourceCheck
from .reload import reload_tuning
from .replica import Replica, RunningRequest
from .reply import Asker, Reply, Services
from .settings import ServerSettings

CLOSE_SECONDS = 10.0  # for a replica's last round, after draining
NO_PROTECTION, NO_LOGS = Protection(), Observation()


def make_app(
    settings: ServerSettings,
    load: Callable[[], Sequence[Decoder]],
    protection: Protection = NO_PROTECTION,
    observation: Observation = NO_LOGS,
) -> Starlette:
    """Make the application. ``protection``: who may ask; anyone by default. Raises ServeError if a log cannot be written.

    ``load`` is called once, at start-up, and returns one Decoder per replica. The application closes them at shutdown. While it runs,
    ``app.state.services`` holds its Services; afterwards ``app.state.clean`` says whether every replica ended in time.
    """

    reports = CrashReports(observation.crash_log)
    traced = exporting_provider() if observation.traces else None
    access = JsonLines(observation.access_log) if observation.access_log else None

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        decoders = await asyncio.to_thread(load)
        pool = Pool([Replica(each, settings.failures) for each in decoders], settings)
        answer_format = await asyncio.to_thread(choose, decoders[0].tokenizer, settings.tool_calls, settings.reasoning)
        metrics = Metrics(pool, settings.model)
        app.state.services = services = Services(settings, pool, metrics, int(time.time()), answer_format)
        pool.on_end = partial(_count_end, services, reports)
        app.state.hub = Hub(pool)
        yield
        app.state.clean = await pool.close(CLOSE_SECONDS)
        for log in (reports, access):
            if log is not None:
                log.close()
        if traced is not None:
            await asyncio.to_thread(traced.shutdown)  # sends what is left

    routes = [
        Route("/v1/chat/completions", _chat_completions, methods=["POST"]),
        Route("/v1/completions", _completions, methods=["POST"]),
        Route("/v1/responses", _responses, methods=["POST"]),
        Route("/v1/models", _models),
        Route("/v1/models/{name:path}", _model),
        Route("/admin/reload", _reload, methods=["POST"]),
        Route("/version", _version),
        Route("/healthz", _healthz),
        Route("/readyz", _readyz),
        Route("/metrics", _metrics),
        *page_routes(),
    ]
    logs = [Middleware(AccessLog, access, observation.prompts)] if access else []
    logs += [Middleware(Traces, traced)] if traced else []
    app = Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=lifespan, middleware=[*logs, *_checks(protection)])
    app.state.protection, app.state.per_request, app.state.reading_bytes = protection, observation.per_request, 0
    return app


def _checks(protection: Protection) -> list[Middleware]:
    """From the outside inwards."""
    sources = Middleware(SourceCheck, protection.origins, protection.hosts)
    methods, exposed = ["GET", "POST"], ["Retry-After"]
    cross = Middleware(CORSMiddleware, protection.origins, methods, allow_headers=["*"], expose_headers=exposed)
    return [sources, *([cross] if protection.origins else []), Middleware(AccessCheck)]


def _count_end(services: Services, reports: CrashReports, replica: Replica, request: RunningRequest, error: BaseException | None) -> None:
    """What follows from the end of a request on a lane, whoever reads its answer."""
    services.limits.count_tokens(request.turn.key, len(request.prompt) + len(request.tokens))
    if error is None:
        services.suspects.succeeded(request.turn.digest)
    elif isinstance(error, EngineFailure):
        services.suspects.failed(request.turn.digest, request.began)
    if isinstance(error, EngineFailure) or (error is not None and as_api_error(error).code == "internal_error"):
        reports.write(services.pool.replicas, replica, request, error)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _chat_completions(request: Request) -> Response:
    def parse(body: bytes, settings: ServerSettings) -> tuple[GenerationRequest, AnswerWriter]:
        return _written(request, True, chat_request(parse_body(ChatBody, body), settings.messages))

    return await _generate(request, parse)


async def _completions(request: Request) -> Response:
    def parse(body: bytes, settings: ServerSettings) -> tuple[GenerationRequest, AnswerWriter]:
        return _written(request, False, completion_request(parse_body(CompletionBody, body)))

    return await _generate(request, parse)


def _written(request: Request, is_chat: bool, generation: GenerationRequest) -> tuple[GenerationRequest, AnswerWriter]:
    if request.app.state.per_request:
        generation = replace(generation, spec_metrics=True)
    return generation, ResponseFormat(is_chat, _services(request).settings.model, generation)


async def _responses(request: Request) -> Response:
    def parse(body: bytes, settings: ServerSettings) -> tuple[GenerationRequest, AnswerWriter]:
        asked = response_request(parse_body(ResponseBody, body), settings.messages)
        return asked.generation, ResponseWriter(settings.model, asked.echoed)

    return await _generate(request, parse)


async def _generate(request: Request, parse: Callable[[bytes, ServerSettings], tuple[GenerationRequest, AnswerWriter]]) -> Response:
    arrived = monotonic()
    services = _services(request)
    key: Key = request.scope.get(SCOPE_KEY, ANYONE)
    try:
        body = await read_body(request, services.settings)
        digest = sha256(body).digest()
        services.suspects.expect_innocent(digest)
        generation, writer = parse(body, services.settings)
        generation = replace(generation, tenant=key.name or request.headers.get("authorization"))
        expect_model(generation.model, services.settings.model)
    except ApiError as error:
        services.metrics.requests.labels(error.outcome).inc()
        raise
    address = request.client.host if request.client else ""
    client = key.name or generation.user or request.headers.get("authorization") or address
    return Reply(services, generation, writer, arrived, Asker(client, key, digest))


async def read_body(request: Request, settings: ServerSettings) -> bytes:
    """The request's body. Raises ApiError when it is too large or arrives too slowly, and when too many large ones arrive at once."""
    body, state = bytearray(), request.app.state
    try:
        async with asyncio.timeout(settings.read_seconds):
            async for piece in request.stream():
                body += piece
                state.reading_bytes += len(piece)
                if len(body) > settings.body_bytes:
                    raise ApiError(413, f"the body is larger than {settings.body_bytes} bytes — send less text", code="body_too_large")
                if state.reading_bytes > max(settings.all_bodies_bytes, 2 * settings.body_bytes):
                    raise ApiError(503, "too many large requests arrive — send this one again later", code="busy", retry_after=1)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {settings.read_seconds:g} s", code="body_timeout") from None
    finally:
        state.reading_bytes -= len(body)
    return bytes(body)


async def _models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_services(request).model_card]})


async def _model(request: Request) -> Response:
    services = _services(request)
    expect_model(request.path_params["name"], services.settings.model)
    return JSONResponse(services.model_card)


async def _healthz(request: Request) -> Response:
    """200 while requests are accepted and every replica works, else 503."""
    pool = _services(request).pool
    return JSONResponse(health_of(pool), 200 if pool.healthy else 503)


def health_of(pool: Pool) -> dict[str, Any]:
    """What /healthz says."""
    return {
        "ready": pool.healthy,
        "draining": pool.draining,
        "replicas": [each.healthy for each in pool.replicas],
        "lanes": pool.lanes,
        "running": pool.running,
        "waiting": pool.waiting.total(),
        "process": os.getpid(),  # tells apart several processes behind one address
    }


async def _readyz(request: Request) -> Response:
    """200 while a new request would be accepted, else 503. A server that has a replica left is ready, though not healthy."""
    pool = _services(request).pool
    ready = not pool.draining and any(each.healthy for each in pool.replicas)
    return JSONResponse({"ready": ready, "draining": pool.draining}, 200 if ready else 503)


async def _version(request: Request) -> Response:
    """The versions of this project, the engine and what computes. vLLM's clients read ``version``."""
    services, found = _services(request), versions()
    manifest = services.decoder.manifest
    engine = {"id": manifest.engine_id, "tuning": manifest.tuning_id, "model": services.settings.model}
    return JSONResponse({"version": found.get("resps", "unknown"), "engine": engine, "versions": found})


async def _reload(request: Request) -> Response:
    """Use the tuning that the engine directory has now."""
    expect_admin(request.scope)
    return JSONResponse(await reload_tuning(_services(request)))


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


HANDLERS = {ApiError: _api_error, HTTPException: _http_error, ClientDisconnect: _client_gone, Exception: _internal_error}
"""What an application of ours answers when a request fails."""
