"""Who may read /events."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

from starlette.datastructures import Headers
from starlette.types import Scope

_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-real-ip")


def may_watch(scope: Scope) -> bool:
    """Whether a request comes from this machine: by its address and by the name that it called, without a proxy in between. A foreign page
    whose name leads to this machine (DNS rebinding) has the right address and the wrong name."""
    headers = Headers(scope=scope)
    address = (scope.get("client") or ("",))[0]
    name = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
    proxied = any(each in headers for each in _FORWARDED)
    return _is_loopback(address) and (_is_loopback(name.strip("[]")) or name == "localhost") and not proxied


def _is_loopback(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
