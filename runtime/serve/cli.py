"""resps-serve: flags -> replicas -> HTTP until a signal comes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import options
from ..console import run_command, usage_errors
from ..options import ENGINE, option
from . import options as serve_options
from .options import LIMITS
from .protection.options import connection_limits_of, logs, observation_of, protection_of
from .protection.options import protection as protection_options
from .settings import ServerSettings

if TYPE_CHECKING:
    from ..decoder import Decoder

SETTINGS = (
    "queue", "queue_seconds", "request_seconds", "target_ms_per_token", "drain_seconds", "write_seconds", "tool_calls", "reasoning",
)  # fmt: skip


@click.command(
    cls=options.Command,
    epilog="""\
resps-serve --engine-dir engines/smollm2-135m
resps-serve --host 0.0.0.0 --port 9000 --lanes 16 --queue 32 --target-ms-per-token 60
resps-serve --replicas 2 --lanes 4 --threads 8
curl localhost:8000/v1/completions -d '{"model": "smollm2-135m", "prompt": "Once", "max_tokens": 20}'""",
)
@option("Address", "--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 listens on all of this machine.")
@option("Address", "--port", type=click.IntRange(0, 65535), default=8000, help="0 takes a free port and prints it.")
@option("Address", "--model-name", metavar="NAME", show_default="the engine directory's name", help="Name of the model for clients.")
@options.engine_dir
@options.backend_and_device
@options.threads("usable cores, or 1 with several replicas")
@options.verify
@serve_options.lanes
@serve_options.replicas
@option(ENGINE, "--no-warmup", is_flag=True, help="Listen at once; the first requests are slower.")
@options.draft()
@serve_options.past_mib
@options.policy("Policy of requests that name none", show_default="what resps-tune chose, else fixed; with several lanes the row budget")
@serve_options.queue(least=0)
@serve_options.queue_seconds
@serve_options.request_seconds
@serve_options.target
@serve_options.seconds("--drain-seconds", "Time to finish running requests after SIGTERM.")
@serve_options.seconds("--write-seconds", "Longest time that a client may leave a piece of its answer unread.")
@option(LIMITS, "--max-body", metavar="BYTES", type=click.IntRange(min=1024), default=ServerSettings.body_bytes, help="Largest request.")
@option(LIMITS, "--max-messages", type=click.IntRange(min=1), default=ServerSettings.messages, help="Most messages of a conversation.")
@serve_options.tool_calls
@serve_options.reasoning
@protection_options
@logs
@option("General", "--check", is_flag=True, help="Load the engine, answer one prompt on it and exit, with 0 or why not.")
@options.general
def command(engine_dir: Path, host: str, port: int, model_name: str | None, **given: Any) -> None:
    """Serve an engine over HTTP with OpenAI's interface: /v1/chat/completions, /v1/responses, /v1/completions, /v1/models.

    /healthz answers 200 when the server is ready; /metrics is for Prometheus. SIGTERM finishes running requests and exits. See
    docs/serving.md and docs/operations.md.
    """
    from ..lanes.choose import described, lane_bytes
    from ..manifest.load import find_engine_dir
    from .app import make_app
    from .check import check
    from .server import Server, Tls
    from .sockets import listeners, shown

    if given["tls_key"] and not given["tls_cert"]:
        raise click.UsageError("--tls-key needs --tls-cert")
    tls = Tls(given["tls_cert"], given["tls_key"]) if given["tls_cert"] else None
    protection, observation = protection_of(given, host), observation_of(given)
    directory = find_engine_dir(engine_dir)
    settings = ServerSettings(
        model=model_name or directory.resolve().name,
        body_bytes=given["max_body"],
        messages=given["max_messages"],
        **{name: given[name] for name in SETTINGS},
    )
    if given["check"]:
        with ExitStack() as loaded:
            click.echo(check([loaded.enter_context(each) for each in _load(directory, given)]))
        return
    with listeners(host, port) as listening:
        decoders = _load(directory, given)
        app = make_app(settings, lambda: decoders, protection, observation)
        places = described(len(decoders), decoders[0].lanes, lane_bytes(decoders[0].manifest, given["draft"]), given["past_mib"])
        ready = f"{settings.model}, {places}, at {'https' if tls else 'http'}://{shown(listening[0])}/v1"
        limits = connection_limits_of(given, settings.write_seconds)
        Server(app, settings.drain_seconds, ready, limits, tls).run(listening)
    if not getattr(app.state, "clean", True):
        os._exit(1)  # an engine hangs; threads cannot be ended from outside


def _load(directory: Path, given: Mapping[str, Any]) -> list[Decoder]:
    from .load import load_replicas

    place = {name: given[name] for name in ("replicas", "lanes", "policy", "draft", "past_mib", "backend", "device", "threads")}
    with usage_errors():  # an unknown policy, say
        return load_replicas(directory, warm=not given["no_warmup"], verify=given["verify"] or None, **place)


def main() -> None:
    """Entry point of resps-serve."""
    sys.exit(run_command(command, "resps-serve", extra="serve"))
