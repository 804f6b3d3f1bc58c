"""Options of resps-serve about who may ask, how it is reached, and what it writes down."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ...options import FILE, combined, option
from ..errors import ServeError
from ..observation.settings import Observation
from .keys import VARIABLE, load_keys
from .settings import ConnectionLimits, Protection

PROTECTION, LOGS = "Protection", "Logs and metrics"
LOG_FILE = click.Path(path_type=Path, dir_okay=False, allow_dash=True)

protection = combined(
    option(
        PROTECTION, "--api-key-file", type=FILE, help=f"TOML file with a table for each API key; {VARIABLE} in the environment adds some."
    ),
    option(PROTECTION, "--allow-origin", metavar="URL", multiple=True, help="Pages of this origin may ask from a browser; * is all."),
    option(PROTECTION, "--allow-host", metavar="NAME", multiple=True, help="Further name of this server on loopback; * is any."),
    option(PROTECTION, "--tls-cert", type=FILE, help="Serve https with this PEM certificate."),
    option(PROTECTION, "--tls-key", type=FILE, show_default="in the same file", help="Its private key, without a password."),
    option(
        PROTECTION,
        "--max-connections",
        type=click.IntRange(1, 100000),
        default=ConnectionLimits.most,
        help="Open connections; one more closes the idlest.",
    ),
    option(
        PROTECTION,
        "--head-seconds",
        metavar="SECONDS",
        type=click.FloatRange(0, 3600, min_open=True),
        default=ConnectionLimits.head_seconds,
        help="Time for a request's headers to arrive.",
    ),
    option(
        PROTECTION,
        "--keep-alive",
        metavar="SECONDS",
        type=click.FloatRange(0, 86400),
        default=ConnectionLimits.idle_seconds,
        help="How long a connection may stay open between two requests.",
    ),
)
logs = combined(
    option(LOGS, "--access-log", metavar="FILE", type=LOG_FILE, help="Append a line of JSON for each request; - is standard output."),
    option(LOGS, "--log-prompts", is_flag=True, help="Write the requests' bodies into the access log, too."),
    option(LOGS, "--crash-log", metavar="FILE", type=LOG_FILE, show_default="standard error", help="Append reports of failed engines."),
    option(LOGS, "--traces", is_flag=True, help="Send OpenTelemetry a span for each request; OTEL_* in the environment say where."),
    option(
        LOGS, "--per-request-spec-decode-metrics", "per_request", is_flag=True, help="Put metrics.speculative_decoding into every answer."
    ),
)


def protection_of(given: Mapping[str, Any], host: str) -> Protection:
    """What the options ask for. ``host``: the address to listen on. Raises ServeError for keys that cannot be read."""
    keys = load_keys(given["api_key_file"], os.environ)
    return Protection(keys, tuple(each.rstrip("/") for each in given["allow_origin"]), (*given["allow_host"], host))


def observation_of(given: Mapping[str, Any]) -> Observation:
    """What the options ask for. Raises ServeError if they contradict each other."""
    if given["log_prompts"] and given["access_log"] is None:
        raise ServeError("--log-prompts needs --access-log — say where to write")
    return Observation(given["access_log"], given["log_prompts"], given["crash_log"], given["traces"], given["per_request"])


def connection_limits_of(given: Mapping[str, Any], write_seconds: float) -> ConnectionLimits:
    """What the options ask for. ``write_seconds``: as in ServerSettings."""
    return ConnectionLimits(given["max_connections"], given["head_seconds"], given["keep_alive"], write_seconds)
