"""Options of a server, shared by resps-serve and the writer of Triton repositories."""

from __future__ import annotations

from collections.abc import Callable

import click

from ..options import ENGINE, F, option
from .settings import ServerSettings

LIMITS = "Limits"


def seconds(name: str, meaning: str) -> Callable[[F], F]:
    """A time limit, with its default from ServerSettings."""
    default = getattr(ServerSettings, name.removeprefix("--").replace("-", "_"))
    return option(LIMITS, name, metavar="SECONDS", type=click.FloatRange(min=0, max=86400), default=default, help=meaning)


def queue(least: int) -> Callable[[F], F]:
    """--queue"""
    kind = click.IntRange(least, 100000)
    return option(LIMITS, "--queue", type=kind, default=ServerSettings.queue, help="Most requests that wait; the next one is refused.")


replicas = option(ENGINE, "--replicas", type=click.IntRange(1, 256), default=1, help="Requests that run at once, over shared weights.")
queue_seconds = seconds("--queue-seconds", "Longest wait of a request; after that it fails.")
request_seconds = seconds("--request-seconds", "Limit from arrival to the last token; then the answer is cut.")
