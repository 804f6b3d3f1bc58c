"""Which requests have a key, and what the key still may ask."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import ApiError
from .keys import ANYONE, Key
from .refusal import refuse

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Paths that need no key: supervisors and load balancers have none, and the answers say nothing about requests."""
PAGE_PATHS = frozenset({"/", "/ui"})
"""The page's files need none either: they hold nothing of the server, and the page asks for a key."""
SCOPE_KEY = "resps.key"


def allowed(scope: Scope) -> Key | None:
    """The key of the request with this ASGI ``scope`` of the application; ANYONE where the server has no keys; None for a request that may
    not be answered."""
    found: Key | None = scope["app"].state.protection.keys.find(scope["headers"])
    return found


class AccessCheck:
    """Refuses requests without a key of this server (401), and those of a key that has used what it may (429). Neither waits for the
    body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path in OPEN_PATHS | PAGE_PATHS or path.startswith("/ui/"):
            await self._app(scope, receive, send)
            return
        try:
            scope[SCOPE_KEY] = key = allowed(scope)
            if key is None:
                raise _no_key(close=await _has_come(receive))
            if scope["method"] == "POST" and path.startswith("/v1/"):
                scope["app"].state.services.limits.count_request(key)
        except ApiError as error:
            await refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)


def expect_admin(scope: Scope) -> None:
    """Raises ApiError (403) if the request's key may not change the server."""
    key: Key = scope.get(SCOPE_KEY, ANYONE)
    if not key.admin:
        raise ApiError(403, f"the key {key.name} may not do this — use one with admin = true", code="not_an_admin")


async def _has_come(receive: Receive) -> bool:
    """Whether the whole body is here already."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            return not (await receive()).get("more_body", False)
    return False


def _no_key(close: bool) -> ApiError:
    """``close``: end the connection, so that whoever sends many requests at once must connect for each. Closing before the body has come
    would cost the client this answer."""
    error = ApiError(401, "no valid API key was given — send Authorization: Bearer KEY", code="invalid_api_key", outcome="unauthorized")
    error.headers |= {"WWW-Authenticate": "Bearer", **({"Connection": "close"} if close else {})}
    return error
