"""Options of a server, shared by resps-serve and the writer of Triton repositories."""

from __future__ import annotations

from collections.abc import Callable

import click

from ..drafters.registry import PAST_MIB
from ..options import ENGINE, SPECULATION, F, option
from ..tool_calls.choose import FORMATS, NO_REASONING
from ..tool_calls.reasoning import MARKS
from .settings import ServerSettings

LIMITS, ANSWERS = "Limits", "Answers"


def seconds(name: str, meaning: str) -> Callable[[F], F]:
    """A time limit, with its default from ServerSettings."""
    default = getattr(ServerSettings, name.removeprefix("--").replace("-", "_"))
    return option(LIMITS, name, metavar="SECONDS", type=click.FloatRange(min=0, max=86400), default=default, help=meaning)


def queue(least: int) -> Callable[[F], F]:
    """--queue"""
    kind = click.IntRange(least, 100000)
    return option(LIMITS, "--queue", type=kind, default=ServerSettings.queue, help="Most requests that wait; the next one is refused.")


lanes = option(
    ENGINE,
    "--lanes",
    type=click.IntRange(1, 1024),
    show_default="8, or fewer: 4 for each thread, what fits into the memory; on a GPU what the plans have",
    help="Requests that share each forward pass.",
)
replicas = option(ENGINE, "--replicas", type=click.IntRange(1, 256), default=1, help="Engines side by side over shared weights.")
past_mib = option(
    SPECULATION,
    "--past-mib",
    metavar="MIB",
    type=click.IntRange(0, 1 << 16),
    default=PAST_MIB,
    help="Memory for past answers, from which later ones to the same Authorization header are drafted; 0 keeps none.",
)
queue_seconds = seconds("--queue-seconds", "Longest wait of a request; after that it fails.")
target = option(
    LIMITS,
    "--target-ms-per-token",
    metavar="MS",
    type=click.FloatRange(min=0, min_open=True),
    show_default="no target",
    help="While running requests wait longer for a token, no further one joins them.",
)
tool_calls = option(
    ANSWERS,
    "--tool-calls",
    metavar="FORMAT",
    type=click.Choice(tuple(FORMATS)),
    show_default="what its chat template writes",
    help=f"How the model writes calls of functions: {', '.join(FORMATS)}.",
)
reasoning = option(
    ANSWERS,
    "--reasoning",
    metavar="MARKS",
    type=click.Choice((*MARKS, NO_REASONING)),
    show_default="what its tokens and its template tell",
    help=f"Marks around the model's reasoning: {', '.join(f'{name} ({each.begin})' for name, each in MARKS.items())} or {NO_REASONING}.",
)
request_seconds = seconds("--request-seconds", "Limit from arrival to the last token; then the answer is cut.")
