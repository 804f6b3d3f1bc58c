"""Ray's choice of a replica: first the one that has most of the prompt in its cache, while it has a free place, then the least busy one."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import LocalityMixin, MultiplexMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from .prefixes import Prefixes


class PrefixRouter(LocalityMixin, MultiplexMixin, RequestRouter):  # type: ignore[misc]  # ray is skipped
    """Routes requests whose first argument has a ``prompt``, a text."""

    def initialize_state(self, **_: Any) -> None:
        self._prefixes = Prefixes()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of replicas; Ray takes the least busy one of the first group that has a free place."""
        near = self.apply_locality_routing(pending_request)  # also asks Ray to wait between tries
        candidates = [each for each in candidate_replicas if each.replica_id in near]
        text = _prompt(pending_request)
        holder = self._prefixes.holder(text) if text else None
        return [[each for each in candidates if each.replica_id == holder], candidates]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        if text := _prompt(pending_request):
            self._prefixes.add(replica_id, text)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._prefixes.keep(each.replica_id for each in replicas)


def _prompt(request: PendingRequest | None) -> str:
    return getattr(request.args[0], "prompt", "") if request is not None and request.args else ""
