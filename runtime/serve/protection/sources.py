"""Which pages of a browser, and under which names, may talk to the server; and which bodies it reads."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import ApiError
from .refusal import refuse

ANY = "*"


class SourceCheck:
    """Refuses requests with a Host that is not this machine's, with the Origin of a foreign page, and with a compressed body.

    ``origins``: pages that may ask, such as ``https://chat.example``; pages of this server may always. ``hosts``: further names of this
    server; None checks no Host. A Host is checked on loopback only: there a page whose own name was pointed at 127.0.0.1 (DNS rebinding)
    would reach a server that nobody else reaches.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str], hosts: Collection[str] | None) -> None:
        self._app, self._origins = app, origins
        self._hosts = None if hosts is None or ANY in hosts else frozenset(each.lower() for each in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._expect_known(scope)
            except ApiError as error:
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _expect_known(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        name = (urlsplit(f"//{host}").hostname or "") if _splits(host) and "@" not in host else host
        if self._hosts is not None and _is_loopback(str((scope.get("server") or ("",))[0])) and host and not self._is_ours(name):
            raise ApiError(403, f"this server is not called {name[:80]!r} — start it with --allow-host", code="host_not_allowed")
        own = origin is not None and _splits(origin) and urlsplit(origin).netloc.lower() == host.lower()
        if origin is not None and not own and origin not in self._origins and ANY not in self._origins:
            raise ApiError(
                403, f"pages of {origin[:80]!r} may not ask here — start the server with --allow-origin", code="origin_not_allowed"
            )
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise ApiError(
                415, f"the body is compressed ({encoding[:40]}) — send it without Content-Encoding", code="unsupported_content_encoding"
            )

    def _is_ours(self, name: str) -> bool:
        return name == "localhost" or name.endswith(".localhost") or _is_loopback(name) or name in (self._hosts or ())


def _is_loopback(address: str) -> bool:
    with suppress(ValueError):
        found = ip_address(address)
        mapped = getattr(found, "ipv4_mapped", None)
        return (mapped or found).is_loopback
    return False


def _splits(url: str) -> bool:
    """Whether urlsplit can read it."""
    with suppress(ValueError):
        return bool(urlsplit(url if "://" in url else f"//{url}").netloc)
    return False
