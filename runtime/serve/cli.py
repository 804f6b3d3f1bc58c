"""resps-serve: flags -> replicas -> HTTP until a signal comes."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ..console import run_command, set_verbosity, usage_errors
from ..drafters.registry import DRAFTERS

SECONDS = click.FloatRange(min=0, max=86400)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--engine-dir", type=click.Path(path_type=Path), default=Path("engines"), envvar="RESPS_ENGINE_DIR", show_default=True,
              show_envvar=True, help="Engine directory, or a parent that holds exactly one.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one of this machine.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one and says which.")
@click.option("--model-name", help="What clients call the model [default: the engine directory's name].")
@click.option(
    "--replicas", type=click.IntRange(1, 256), default=1, show_default=True, help="Requests that run at once, over one copy of the weights."
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of a pass [default: physical cores; 1 with several replicas].")
@click.option("--policy", help="What decides how big the tree is, where a request does not say [default: as tuned].")
@click.option("--draft", type=click.Choice(list(DRAFTERS)), help="What proposes the tree [default: as resps-run].")
@click.option("--backend", type=click.Choice(["onnxruntime", "tensorrt"]), help="What runs the engines [default: what they were made for].")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where they run [default: where they were made for].")
@click.option(
    "--queue", type=click.IntRange(min=0, max=100000), default=64, show_default=True, help="Requests that may wait; the next one gets 429."
)
@click.option("--queue-seconds", type=SECONDS, default=30, show_default=True, help="How long one may wait; then it gets 503.")
@click.option(
    "--request-seconds", type=SECONDS, default=300, show_default=True, help="From arrival to the last token; then the answer is cut."
)
@click.option("--drain-seconds", type=SECONDS, default=30, show_default=True, help="For what runs when SIGTERM comes.")
@click.option("--write-seconds", type=SECONDS, default=30, show_default=True, help="How long a client may leave what it was sent unread.")
@click.option("--max-body", type=click.IntRange(min=1024), default=1 << 20, show_default=True, help="Largest request, in bytes.")
@click.option("--max-messages", type=click.IntRange(min=1), default=256, show_default=True, help="Longest conversation.")
@click.option("--no-warmup", is_flag=True, help="Listen at once; the first requests are slower.")
@click.option("-v", "--verbose", count=True, help="Say what is done; -vv shows tracebacks.")
@click.version_option(package_name="resps")
def command(engine_dir: Path, host: str, port: int, model_name: str | None, verbose: int, **options: Any) -> None:
    """Serve the engine over HTTP with OpenAI's interface: /v1/chat/completions, /v1/completions, /v1/models.

    /healthz is 200 when it is ready, /metrics is for Prometheus. SIGTERM finishes what runs and ends. docs/serving.md says more.
    """
    set_verbosity(verbose)
    missing = [name for name in ("prometheus_client", "pydantic", "starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        from .errors import ServeError

        raise ServeError(f"{', '.join(missing)} not installed — pip install 'resps[serve]'")
    from ..manifest.load import find_engine_dir
    from .app import make_app
    from .load import load_replicas
    from .server import Server, bind
    from .settings import ServerSettings

    directory = find_engine_dir(engine_dir)
    settings = ServerSettings(
        model=model_name or directory.resolve().name,
        body_bytes=options["max_body"],
        messages=options["max_messages"],
        **{name: options[name] for name in ("queue", "queue_seconds", "request_seconds", "drain_seconds", "write_seconds")},
    )
    with bind(host, port) as listener:
        place = {name: options[name] for name in ("policy", "draft", "backend", "device", "threads")}
        with usage_errors():  # an unknown policy, say
            decoders = load_replicas(directory, options["replicas"], warm=not options["no_warmup"], **place)
        app = make_app(settings, lambda: decoders)
        shown = f"[{host}]" if ":" in host else host
        server = Server(app, settings.drain_seconds, f"{settings.model} at http://{shown}:{listener.getsockname()[1]}/v1")
        server.run([listener])
    if not getattr(app.state, "clean", True):
        os._exit(1)  # an engine hangs; threads cannot be ended from outside


def main() -> None:
    """Entry point of resps-serve."""
    sys.exit(run_command(command, "resps-serve"))
