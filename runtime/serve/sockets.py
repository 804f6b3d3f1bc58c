"""The sockets that the server listens on: an address's own, or those that systemd opened."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, suppress

from .errors import ServeError

FIRST_INHERITED = 3  # systemd passes sockets from this descriptor on


@contextmanager
def listeners(host: str, port: int) -> Iterator[list[socket.socket]]:
    """The bound sockets. A taken port is reported here, before the engine is loaded. Raises ServeError."""
    with ExitStack() as cleanup:
        yield [cleanup.enter_context(each) for each in inherited(os.environ) or _bind_all(host, port)]


def _bind_all(host: str, port: int) -> list[socket.socket]:
    """localhost is 127.0.0.1 and ::1, and a client may try either first."""
    bound = [bind("127.0.0.1" if host == "localhost" else host, port)]
    if host == "localhost":
        with suppress(ServeError):  # a container often has no IPv6
            bound.append(bind("::1", bound[0].getsockname()[1]))
    return bound


def bind(host: str, port: int) -> socket.socket:
    """Bind one socket without listening yet. ``::`` takes IPv4 too. Raises ServeError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with ExitStack() as cleanup:
            listener = cleanup.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restarted server can bind while old connections close
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
            listener.bind((host, port))
            cleanup.pop_all()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ServeError(f"cannot listen on {host} port {port}: {reason} — choose another --host or --port") from None
    return listener


def inherited(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """The sockets that systemd opened for this process (LISTEN_PID, LISTEN_FDS), which are taken out of ``environment``; none if it opened
    none. Raises ServeError for one that takes no connections."""
    count, process = environment.get("LISTEN_FDS", ""), environment.get("LISTEN_PID", "")
    if not count.isdecimal() or process != str(os.getpid()):
        return []
    del environment["LISTEN_FDS"], environment["LISTEN_PID"]
    found = []
    for number in range(FIRST_INHERITED, FIRST_INHERITED + int(count)):
        try:
            each = socket.socket(fileno=number)
            if each.type != socket.SOCK_STREAM:
                raise OSError("no stream")
        except OSError:
            raise ServeError(f"descriptor {number} from systemd is no stream socket — use ListenStream= in the socket unit") from None
        each.set_inheritable(False)
        found.append(each)
    return found


def shown(listener: socket.socket) -> str:
    """The address as a part of a URL."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return str(listener.getsockname())
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
