"""What the server writes down about its work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Observation:
    """``access_log``: a file that gets a line of JSON for each request; None writes none. ``prompts``: whether the line has the request's
    body. ``crash_log``: a file for crash reports; None logs them. ``traces``: whether OpenTelemetry gets a span for each request.
    ``per_request``: whether every answer has vLLM's ``metrics.speculative_decoding``."""

    access_log: Path | None = None
    prompts: bool = False
    crash_log: Path | None = None
    traces: bool = False
    per_request: bool = False
