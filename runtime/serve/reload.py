"""A new tuning without a restart: new engines over the same weights take over, and the old ones finish what they run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from ..decoder import Decoder
from ..errors import RespsError
from .errors import ApiError, shutting_down
from .load import warm_up
from .replica import Replica
from .reply import Services


async def reload_tuning(services: Services) -> dict[str, Any]:
    """Read the directory's tuning and use it for all further requests. Returns what is in use now.

    Raises ApiError if the tuning cannot be used, a reload is under way or the server is stopping; then nothing changes.
    """
    pool = services.pool
    if services.reloading.locked():
        raise ApiError(409, "the tuning is being reloaded already — try again when that is done", code="reload_running")
    async with services.reloading:
        try:
            decoders = await asyncio.to_thread(_reloaded, [each.decoder for each in pool.replicas])
        except (RespsError, ValueError) as error:
            raise ApiError(409, f"the tuning was not changed: {error}", code="tuning_unusable") from None
        if pool.draining:
            for each in decoders:
                each.close()
            raise shutting_down()
        pool.replace([Replica(each, services.settings.failures) for each in decoders])
    return {"object": "tuning", "replicas": len(decoders), "policies": list(decoders[0].policies)}


def _reloaded(old: Sequence[Decoder]) -> list[Decoder]:
    """A warm Decoder for each old one. Every policy is loaded, so that a damaged one is noticed now."""
    with ExitStack() as cleanup:
        new = [cleanup.enter_context(old[0].fork(reload_tuning=True))]
        new += [cleanup.enter_context(new[0].fork()) for _ in old[1:]]
        for name in new[0].policies:
            new[0].policy(name)
        warm_up(new)
        cleanup.pop_all()
    return new
