"""The server as a Ray Serve application, for several machines: Ray places the processes, restarts and counts them, and routes requests.

    serve run runtime.serve.ray.app:application engine_dir=/models/smollm2-135m replicas=4 max_replicas=8 threads=8 lanes=8

Needs ``ray[serve]``.
"""

from __future__ import annotations

from ray import serve
from ray.serve.config import RequestRouterConfig

from .arguments import Arguments
from .engine import Engine
from .front import Front
from .router import PrefixRouter

SPARE = 2  # requests that wait at a replica, so that a lane need not wait for the front when it becomes free
HEALTH_SECONDS = 2.0  # between two questions whether a replica lives; Ray starts another one then


def application(arguments: Arguments) -> serve.Application:
    """Build the Serve application. ``serve run``, a Serve config file or ``ray.serve.run`` runs it. Raises EngineDirError."""
    given = arguments.with_pins()
    engines = serve.deployment(
        Engine,
        name="engine",
        ray_actor_options={"num_cpus": given.threads},
        max_ongoing_requests=given.most_lanes + SPARE,
        max_queued_requests=given.queue,
        graceful_shutdown_timeout_s=given.drain_seconds,
        health_check_period_s=HEALTH_SECONDS,
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
        **given.scaling,
    )
    front = serve.deployment(
        serve.ingress()(Front),
        name="front",
        num_replicas=given.fronts,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=4 * (given.queue + (given.max_replicas or given.replicas) * (given.most_lanes + SPARE)),
        graceful_shutdown_timeout_s=given.drain_seconds,
        health_check_period_s=HEALTH_SECONDS,
    )
    return front.bind(engines.bind(given), given)
