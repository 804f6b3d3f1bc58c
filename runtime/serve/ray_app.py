"""The same server as a Ray Serve application, for more than one machine: Ray places the processes, restarts sick ones and routes requests.

    serve run runtime.serve.ray_app:application engine_dir=/models/smollm2-135m processes=4 replicas=2

Every process is a whole server: ``replicas`` over one copy of the weights, the queue, /healthz and /metrics. Needs ``ray[serve]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from .app import make_app
from .load import load_replicas
from .settings import ServerSettings

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]

_BUILT: list[FastAPI] = []  # this process' own, for Ray's health check


class Arguments(BaseModel):
    """``processes``: number of Ray's processes, each with ``replicas`` and ``cpus`` reserved CPUs [default: one per replica]. The rest is
    as in resps-serve. ``engine_dir`` must exist on every machine."""

    model_config = ConfigDict(extra="forbid")
    engine_dir: str
    model_name: str | None = None
    processes: Count = 1
    replicas: Count = 1
    cpus: Annotated[float, Field(gt=0)] | None = None
    threads: Count | None = None
    policy: str | None = None
    draft: str | None = None
    queue: Annotated[int, Field(ge=0)] = ServerSettings.queue
    queue_seconds: Seconds = ServerSettings.queue_seconds
    request_seconds: Seconds = ServerSettings.request_seconds
    drain_seconds: Seconds = ServerSettings.drain_seconds


def application(given: Arguments) -> serve.Application:
    """The application, to be run by ``serve run``, a Serve config file, or ``ray.serve.run``."""
    arguments = given.model_dump()

    def build() -> FastAPI:  # in Ray's process
        return build_app(arguments)

    class Resps:
        """A server; Ray restarts it when it is not healthy."""

        def check_health(self) -> None:
            expect_healthy()

    deployment = serve.deployment(
        serve.ingress(build)(Resps),
        name="resps",
        num_replicas=given.processes,
        ray_actor_options={"num_cpus": given.cpus or given.replicas},
        max_ongoing_requests=4 * (given.replicas + given.queue),  # refusing is for the server's own queue, which says why and for how long
        graceful_shutdown_timeout_s=given.drain_seconds,
    )
    return deployment.bind()


def build_app(arguments: dict[str, Any]) -> FastAPI:
    """The server of one process. Loads when Ray starts it up."""
    given = Arguments(**arguments)
    settings = ServerSettings(
        model=given.model_name or Path(given.engine_dir).name,
        queue=given.queue,
        queue_seconds=given.queue_seconds,
        request_seconds=given.request_seconds,
        drain_seconds=given.drain_seconds,
    )
    place: dict[str, Any] = {"threads": given.threads, "policy": given.policy, "draft": given.draft}
    app = make_app(settings, lambda: load_replicas(Path(given.engine_dir), given.replicas, **place))
    _BUILT[:] = [app]
    return app


def expect_healthy() -> None:
    """Raises RuntimeError when a replica of this process was given up."""
    house = getattr(_BUILT[0].state, "house", None) if _BUILT else None
    if house is not None and not all(each.healthy for each in house.pool.replicas):
        raise RuntimeError("a replica failed again and again and was given up")
