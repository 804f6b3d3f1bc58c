"""Spans of requests, through OpenTelemetry's exporter in memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.serve.errors import ServeError
from runtime.serve.observation.settings import Observation
from runtime.serve.observation.traces import exporting_provider
from tests.support.serve.client import LONG, post
from tests.support.serve.fakes import ToyDecoder, toy_answer
from tests.support.serve.serving import serving, until


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr("runtime.serve.app.exporting_provider", lambda: provider)
    yield memory
    provider.shutdown()


def test_a_request_is_a_span_with_its_phases_inside(exporter: Any) -> None:
    caller = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    with serving([ToyDecoder()], observation=Observation(traces=True)) as served:
        served.http.post("/v1/completions", json={"prompt": LONG, "max_tokens": 1000, "temperature": 0}, headers=caller)
        until(lambda: len(exporter.get_finished_spans()) == 4)
        served.http.get("/healthz")
        assert served.http.post("/v1/completions", json={}).status_code == 400
        until(lambda: len(exporter.get_finished_spans()) == 5)  # health checks have none, a refused request has no phases
    *phases, request, refused = exporter.get_finished_spans()
    assert [each.name for each in phases] == ["queue", "prefill", "decode"]
    assert (request.name, f"{request.context.trace_id:x}") == ("POST /v1/completions", "4bf92f3577b34da6a3ce929d0e0e4736")
    assert request.parent.span_id == 0x00F067AA0BA902B7
    assert all(each.parent.span_id == request.context.span_id for each in phases)
    marks = [request.start_time, *(mark for each in phases for mark in (each.start_time, each.end_time)), request.end_time]
    assert marks == sorted(marks)
    assert request.attributes["gen_ai.usage.output_tokens"] == len(toy_answer(LONG.encode()))
    assert (request.attributes["gen_ai.usage.input_tokens"], request.attributes["resps.outcome"]) == (len(LONG), "eos")
    assert refused.attributes["http.response.status_code"] == 400
    assert not any(name.endswith(("prompt", "content", "messages")) for name in request.attributes)


def test_an_answer_that_fails_is_an_error(exporter: Any) -> None:
    toy = ToyDecoder()
    toy.failing = RuntimeError("broken")
    with serving([toy], observation=Observation(traces=True)) as served:
        assert post(served).status_code == 500
        until(lambda: len(exporter.get_finished_spans()) == 3)
    queue, prefill, request = exporter.get_finished_spans()
    assert (queue.name, prefill.name) == ("queue", "prefill")  # it came to no token
    assert request.status.status_code.name == "ERROR"


def test_nothing_of_opentelemetry_is_imported_without_it() -> None:
    code = "import sys, runtime.serve.app, runtime.serve.server; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ServeError, match=r"resps\[otel\]"):
        exporting_provider()
