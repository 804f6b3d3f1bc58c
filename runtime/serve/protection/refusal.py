"""A request that is answered before it reaches a route."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from ..errors import ApiError


async def refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send ``error`` as the response, and count it in /metrics, if the application has metrics; the front of Ray has none."""
    metrics = getattr(scope["app"].state.services, "metrics", None)
    if metrics is not None:
        metrics.requests.labels(error.outcome).inc()
    await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
