"""resps-serve: flags -> replicas -> HTTP until a signal comes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from .. import options
from ..console import run_command, usage_errors
from ..options import ENGINE, option
from . import options as serve_options
from .options import LIMITS
from .settings import ServerSettings

SETTINGS = ("queue", "queue_seconds", "request_seconds", "target_ms_per_token", "drain_seconds", "write_seconds")


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
@options.general
def command(engine_dir: Path, host: str, port: int, model_name: str | None, **given: Any) -> None:
    """Serve an engine over HTTP with OpenAI's interface: /v1/chat/completions, /v1/completions, /v1/models.

    /healthz answers 200 when the server is ready; /metrics is for Prometheus. SIGTERM finishes running requests and exits. See
    docs/serving.md.
    """
    from ..lanes.choose import described, lane_bytes
    from ..manifest.load import find_engine_dir
    from .app import make_app
    from .load import load_replicas
    from .server import Server, bind

    directory = find_engine_dir(engine_dir)
    settings = ServerSettings(
        model=model_name or directory.resolve().name,
        body_bytes=given["max_body"],
        messages=given["max_messages"],
        **{name: given[name] for name in SETTINGS},
    )
    with bind(host, port) as listener:
        place = {name: given[name] for name in ("replicas", "lanes", "policy", "draft", "past_mib", "backend", "device", "threads")}
        with usage_errors():  # an unknown policy, say
            decoders = load_replicas(directory, warm=not given["no_warmup"], verify=given["verify"] or None, **place)
        app = make_app(settings, lambda: decoders)
        places = described(len(decoders), decoders[0].lanes, lane_bytes(decoders[0].manifest, given["draft"]), given["past_mib"])
        shown = f"[{host}]" if ":" in host else host
        server = Server(app, settings.drain_seconds, f"{settings.model}, {places}, at http://{shown}:{listener.getsockname()[1]}/v1")
        server.run([listener])
    if not getattr(app.state, "clean", True):
        os._exit(1)  # an engine hangs; threads cannot be ended from outside


def main() -> None:
    """Entry point of resps-serve."""
    sys.exit(run_command(command, "resps-serve", extra="serve"))
