"""OpenTelemetry: a span for each request, with its phases inside. OpenTelemetry is imported here only."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic, time_ns
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ServeError
from ..protection.access import SCOPE_KEY
from .record import RequestRecord, record_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SECOND = 1_000_000_000  # nanoseconds


def exporting_provider() -> TracerProvider:
    """A provider that sends spans by OTLP over HTTP; the usual variables OTEL_* say where and what. Raises ServeError."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ServeError("OpenTelemetry is not installed — pip install 'resps[otel]'") from None
    provider = TracerProvider(resource=Resource.create({"service.name": "resps-serve"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Traces:
    """Makes a span for each request for an answer, a child of the caller's if its headers name one. No span holds a prompt or an answer."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app, self._tracer = app, provider.get_tracer("resps")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        began, status = monotonic(), [0]

        async def noted_send(message: Message) -> None:
            status[0] = message.get("status", status[0])
            await send(message)

        try:
            await self._app(scope, receive, noted_send)
        finally:
            self._record(scope, status[0], began)

    def _record(self, scope: Scope, status: int, began: float) -> None:
        from opentelemetry import propagate, trace

        record, ended = record_of(scope), monotonic()
        since_1970 = time_ns() - int(ended * SECOND)  # between the two clocks
        caller = propagate.extract(dict(Headers(scope=scope)))
        attributes = {"http.request.method": "POST", "url.path": scope["path"], "http.response.status_code": status}
        if key := scope.get(SCOPE_KEY):
            attributes["resps.key"] = key.name
        span = self._tracer.start_span(
            f"POST {scope['path']}",
            context=caller,
            kind=trace.SpanKind.SERVER,
            attributes={**attributes, **(_attributes(record) if record else {})},
            start_time=int(began * SECOND) + since_1970,
        )
        within = trace.set_span_in_context(span, caller)
        for name, (start, end) in _phases(record).items():
            phase = self._tracer.start_span(name, context=within, start_time=int(start * SECOND) + since_1970)
            phase.end(int(end * SECOND) + since_1970)
        if status >= 500 or status == 0:
            span.set_status(trace.StatusCode.ERROR)
        span.end(int(ended * SECOND) + since_1970)


def _phases(record: RequestRecord | None) -> dict[str, tuple[float, float]]:
    """Start and end of what the request came to."""
    if record is None:
        return {}
    marks = [("queue", record.arrived), ("prefill", record.on_lane), ("decode", record.first)]
    came = [(name, start) for name, start in marks if start is not None]
    ends = [start for _, start in came[1:]] + [record.ended]
    return {name: (start, max(start, end)) for (name, start), end in zip(came, ends, strict=True)}


def _attributes(record: RequestRecord) -> Mapping[str, str | int | bool]:
    """Those of OpenTelemetry's conventions for generative AI, and ours."""
    return {
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "resps.outcome": record.outcome,
        "resps.stream": record.stream,
        "resps.draft_tokens": sum(each.drafted for each in record.stats),
        "resps.accepted_tokens": sum(each.accepted for each in record.stats),
        "resps.cached_prompt_tokens": sum(each.cached_prompt_tokens for each in record.stats),
    }
