"""The server as a Ray Serve application, for several machines: Ray places the processes, restarts unhealthy ones and routes requests.

    serve run runtime.serve.ray_app:application engine_dir=/models/smollm2-135m processes=4 cpus=8 lanes=8

Each process is a complete server: ``replicas`` of ``lanes`` over one copy of the weights, the queue, /healthz and /metrics. Needs
``ray[serve]``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from starlette.applications import Starlette

from ..lanes.choose import DEFAULT_LANES
from .app import make_app
from .load import load_replicas
from .protection.keys import load_keys
from .protection.settings import Protection
from .settings import ServerSettings

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]

_BUILT: list[Starlette] = []  # this process's application, for Ray's health check


class Arguments(BaseModel):
    """``processes``: number of Ray's processes, each with ``replicas`` and ``cpus`` reserved CPUs [default: one per replica]. The rest is
    as in resps-serve. ``engine_dir`` must exist on every machine."""

    model_config = ConfigDict(extra="forbid")
    engine_dir: str
    model_name: str | None = None
    processes: Count = 1
    replicas: Count = 1
    lanes: Count | None = None
    cpus: Annotated[float, Field(gt=0)] | None = None
    threads: Count | None = None
    policy: str | None = None
    draft: str | None = None
    queue: Annotated[int, Field(ge=0)] = ServerSettings.queue
    queue_seconds: Seconds = ServerSettings.queue_seconds
    request_seconds: Seconds = ServerSettings.request_seconds
    drain_seconds: Seconds = ServerSettings.drain_seconds
    target_ms_per_token: Annotated[float, Field(gt=0)] | None = None
    tool_calls: str | None = None
    reasoning: str | None = None
    api_key_file: str | None = None


def application(arguments: Arguments) -> serve.Application:
    """Build the Serve application. ``serve run``, a Serve config file or ``ray.serve.run`` runs it."""
    values = arguments.model_dump()

    def build() -> Starlette:  # called in Ray's process
        return build_app(values)

    class ServerProcess:
        """One server process. Ray restarts it when the health check raises."""

        def check_health(self) -> None:
            expect_healthy()

    deployment = serve.deployment(
        serve.ingress(build)(ServerProcess),
        name="resps",
        num_replicas=arguments.processes,
        ray_actor_options={"num_cpus": arguments.cpus or arguments.replicas},
        # above the server's own limit, whose 429 has a reason and Retry-After
        max_ongoing_requests=4 * (arguments.replicas * (arguments.lanes or DEFAULT_LANES) + arguments.queue),
        graceful_shutdown_timeout_s=arguments.drain_seconds,
    )
    return deployment.bind()


def build_app(values: dict[str, Any]) -> Starlette:
    """Make the application of one process. It loads the engine at start-up."""
    arguments = Arguments(**values)
    settings = ServerSettings(
        model=arguments.model_name or Path(arguments.engine_dir).name,
        queue=arguments.queue,
        queue_seconds=arguments.queue_seconds,
        request_seconds=arguments.request_seconds,
        drain_seconds=arguments.drain_seconds,
        target_ms_per_token=arguments.target_ms_per_token,
        tool_calls=arguments.tool_calls,
        reasoning=arguments.reasoning,
    )
    options = {name: values[name] for name in ("replicas", "lanes", "threads", "policy", "draft")}
    keys = load_keys(Path(arguments.api_key_file) if arguments.api_key_file else None, os.environ)
    app = make_app(settings, lambda: load_replicas(Path(arguments.engine_dir), **options), Protection(keys))
    _BUILT[:] = [app]
    return app


def expect_healthy() -> None:
    """Raises RuntimeError if this process has given up a replica."""
    services = getattr(_BUILT[0].state, "services", None) if _BUILT else None
    if services is not None and not all(each.healthy for each in services.pool.replicas):
        raise RuntimeError("a replica was given up after repeated failures")
