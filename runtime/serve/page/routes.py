"""The routes of the page: / leads to /ui/, whose files come with the package, and /events is its stream."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from ..errors import ApiError
from ..protection.access import SCOPE_KEY
from ..protection.keys import ANYONE
from .access import may_watch
from .events import EventStream
from .hub import Hub

STATIC = Path(__file__).parent / "static"
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'"
HEADERS = {
    "content-security-policy": f"{POLICY}; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


class PageFiles(StaticFiles):
    """The page's files, each with HEADERS. They hold nothing of the server, so no key is needed for them."""

    def file_response(self, full_path: str | os.PathLike[str], *arguments: Any, **more: Any) -> Response:
        response = super().file_response(full_path, *arguments, **more)
        response.headers.update(HEADERS)
        return response


def page_routes() -> list[BaseRoute]:
    """The application keeps its Hub in ``app.state.hub``."""
    return [Route("/", _front), Route("/events", _events), Mount("/ui", PageFiles(directory=STATIC, html=True))]


async def _front(request: Request) -> Response:
    return RedirectResponse("ui/")  # relative, so that it works behind a proxy's prefix


async def _events(request: Request) -> Response:
    has_key = request.scope.get(SCOPE_KEY, ANYONE) is not ANYONE
    if not (has_key or may_watch(request.scope)):
        raise ApiError(
            403, "/events is for this machine only, or for a key — open the page here, at http://127.0.0.1", code="not_this_machine"
        )
    hub: Hub = request.app.state.hub
    return EventStream(hub, request.query_params.get("user"))
