"""The messages of /events: sizes, times and numbers of requests. They hold no text and no token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...decoding.cycle import CycleEvent
from ...decoding.loop import Round
from ..replica import Replica
from .hub import Hub, Watcher

INTERVAL = 0.25  # seconds between messages: a reader wakes the server's event loop so often, however fast it decodes
QUIET = 10.0  # seconds after which a message comes although nothing changed, so that a dead connection is noticed
PATIENCE = 30.0  # seconds for a reader to take a message


class EventStream(Response):
    """The response of /events, until its reader leaves or the server stops. ``user``: of requests that are marked as the reader's own.
    Sending it raises ApiError if there are too many readers."""

    def __init__(self, hub: Hub, user: str | None) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._hub, self._user = hub, user

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._hub.watching(self._user) as watcher:
            left = asyncio.create_task(_left(receive))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for message in self._messages(watcher, left):
                    async with asyncio.timeout(PATIENCE):
                        await send({"type": "http.response.body", "body": message, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            except TimeoutError:  # returning without a last message closes the connection
                pass
            finally:
                left.cancel()

    async def _messages(self, watcher: Watcher, left: asyncio.Task[None]) -> AsyncIterator[bytes]:
        began, last, sent = perf_counter(), "", 0.0
        while not (left.done() or self._hub.pool.draining):
            state = json.dumps(_state(self._hub, watcher))
            cycles = [_cycle(*each, began) for each in watcher.take()]
            if cycles or state != last or perf_counter() - sent > QUIET:
                last, sent = state, perf_counter()
                yield f'data: {{"state": {state}, "cycles": {json.dumps(cycles)}}}\n\n'.encode()
            await asyncio.wait({left}, timeout=INTERVAL)


async def _left(receive: Receive) -> None:
    """Returns when the reader has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _state(hub: Hub, watcher: Watcher) -> dict[str, Any]:
    replicas = [_replica(each, watcher.user) for each in hub.pool.replicas]
    return {"replicas": replicas, "waiting": hub.pool.waiting.total(), "dropped": watcher.dropped}


def _replica(replica: Replica, user: str | None) -> dict[str, Any]:
    """``own``: whether the watcher's own page sent the request. ``tokens``: of the answer so far."""
    running = [
        {
            "request": each.request,
            "own": user is not None and each.generation.user == user,
            "prompt": len(each.prompt),
            "tokens": len(each.tokens),
        }
        for each in sorted(replica.running, key=lambda each: each.request or 0)
    ]
    return {"lanes": replica.lanes, "healthy": replica.healthy, "running": running}


def _cycle(replica: int, ended: float, cycle: CycleEvent, began: float) -> dict[str, Any]:
    """``at``: when it ended, in milliseconds since the reader came. ``read``: tokens of a prompt, in a pass of its own if there is no
    round."""
    parts = {"read": cycle.read_seconds, "draft": 0.0, "verify": 0.0, "commit": 0.0}
    if cycle.rounds:
        _, first = cycle.rounds[0]
        parts |= {"draft": first.draft_seconds, "verify": first.verify_seconds}
        parts["commit"] = first.seconds - first.draft_seconds - first.verify_seconds
    return {
        "replica": replica,
        "at": round(1000 * (ended - began), 1),
        "rows": cycle.rows,
        "read": cycle.read_rows,
        "ms": {name: round(1000 * seconds, 2) for name, seconds in parts.items()},
        "rounds": [_round(*each) for each in cycle.rounds],
    }


def _round(request: int, round_: Round) -> dict[str, Any]:
    """``nodes``: verified. ``accepted``: draft tokens. ``asked``: nodes of the tree that the policy asked for."""
    return {
        "request": request,
        "nodes": round_.nodes,
        "accepted": len(round_.path) - 1,
        "tokens": len(round_.tokens),
        "asked": round_.spec.nodes,
        "source": round_.tree.source,
    }
