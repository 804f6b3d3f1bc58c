"""The arguments of the application, as `serve run` and Serve's config files give them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ...lanes.choose import DEFAULT_LANES, LANES_OF_A_CORE
from ..settings import ServerSettings
from .pins import Pins, pinned

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]
BUSY = 0.75  # the share of lanes in use from which a replica is added: it takes seconds to start


class Arguments(BaseModel):
    """What is not explained here is as in resps-serve.

    ``engine_dir``: must exist on every machine. ``engine``, ``tuning``: hashes that it must have there, as /version shows them [default:
    those of the directory on the machine that builds the application]. ``replicas``: processes with a Decoder each. ``max_replicas``: with
    it Ray adds and removes replicas between the two, so that each has ``busy_lanes`` requests [default: three quarters of its lanes].
    ``threads``: of a replica, and the CPUs that Ray reserves for it. ``lanes``: of a replica [default: 8, at most 4 a thread]. ``queue``:
    requests that wait for a replica, of each front. ``fronts``: processes that take HTTP requests and pass them on.
    """

    model_config = ConfigDict(extra="forbid")
    engine_dir: str
    engine: str | None = None
    tuning: str | None = None
    model_name: str | None = None
    fronts: Count = 1
    replicas: Count = 1
    max_replicas: Count | None = None
    busy_lanes: Annotated[float, Field(gt=0)] | None = None
    lanes: Count | None = None
    threads: Count = 1
    policy: str | None = None
    draft: str | None = None
    queue: Count = ServerSettings.queue
    queue_seconds: Annotated[float, Field(gt=0)] = ServerSettings.queue_seconds
    request_seconds: Seconds = ServerSettings.request_seconds
    drain_seconds: Seconds = ServerSettings.drain_seconds
    target_ms_per_token: Annotated[float, Field(gt=0)] | None = None
    tool_calls: str | None = None
    reasoning: str | None = None
    api_key_file: str | None = None

    def with_pins(self) -> Arguments:
        """The same with the hashes that are not given. Raises EngineDirError."""
        pins = pinned(Path(self.engine_dir), self.engine, self.tuning)
        return self.model_copy(update={"engine": pins.engine, "tuning": pins.tuning})

    @property
    def pins(self) -> Pins:
        return Pins(str(self.engine), str(self.tuning))

    @property
    def most_lanes(self) -> int:
        """Lanes of a replica. Ray must know them, so a replica whose memory is too small for them does not start."""
        return self.lanes or min(DEFAULT_LANES, LANES_OF_A_CORE * self.threads)

    @property
    def scaling(self) -> dict[str, Any]:
        """Ray's options for the number of replicas."""
        if self.max_replicas is None:
            return {"num_replicas": self.replicas}
        target = self.busy_lanes or BUSY * self.most_lanes
        numbers = {"min_replicas": self.replicas, "initial_replicas": self.replicas, "max_replicas": self.max_replicas}
        return {"autoscaling_config": {**numbers, "target_ongoing_requests": target}}

    @property
    def settings(self) -> ServerSettings:
        """Of the server in a replica."""
        return ServerSettings(
            model=self.model_name or Path(self.engine_dir).name,
            queue=self.queue,
            queue_seconds=self.queue_seconds,
            request_seconds=self.request_seconds,
            drain_seconds=self.drain_seconds,
            target_ms_per_token=self.target_ms_per_token,
            tool_calls=self.tool_calls,
            reasoning=self.reasoning,
        )
