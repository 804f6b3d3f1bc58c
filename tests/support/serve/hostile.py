"""Clients that are slow, broken or hostile, held to a share of a processor so that they load the server and not the machine.

    python -m tests.support.serve.hostile HOST PORT COUNT SECONDS SHARE

A program, because a process of its own is what can be held. Prints how often each kind tried, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import cycle, islice

PAUSE = 0.25  # seconds between two bytes of a slow client, and between two tries of a fast one
BODY = json.dumps({"prompt": "hostile", "max_tokens": 100}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
WRONG = b"Authorization: Bearer a-wrong-key\r\n"

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def slow_head(connection: Connection) -> None:
    await trickle(connection[1], HEAD + b"X: y\r\n" * 100)


async def slow_body(connection: Connection) -> None:
    connection[1].write(HEAD + WRONG + b"Content-Length: 100000\r\n\r\n")
    await trickle(connection[1], BODY * 100)


async def trickle(writer: asyncio.StreamWriter, data: bytes) -> None:
    for byte in data:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(PAUSE)


async def half_open(connection: Connection) -> None:
    await connection[0].read()  # until the server has enough


async def churn(connection: Connection) -> None:
    """Connects and leaves."""


async def huge_head(connection: Connection) -> None:
    connection[1].write(HEAD + b"X: " + b"y" * 65536)
    await connection[0].read()


async def garbage(connection: Connection) -> None:
    connection[1].write(random.randbytes(512) + b"\r\n\r\n")
    await connection[0].read()


async def never_reads(connection: Connection) -> None:
    connection[1].write((HEAD + WRONG + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY) * 20)
    await asyncio.sleep(4 * PAUSE)


async def wrong_key(connection: Connection) -> None:
    """Raises AssertionError if it is answered."""
    for _ in range(8):
        connection[1].write(HEAD + WRONG + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        head = await connection[0].readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 401 "), head
        await connection[0].readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        await asyncio.sleep(PAUSE)


KINDS: tuple[Callable[[Connection], Awaitable[None]], ...] = (
    slow_head, slow_body, half_open, churn, huge_head, garbage, never_reads, wrong_key,
)  # fmt: skip


async def attack(host: str, port: int, count: int, seconds: float, share: float = 1.0) -> Counter[str]:
    """``count`` clients, of all kinds in turn, for ``seconds``. ``share``: of one processor that this process may use. Returns how often
    each kind tried."""
    tried: Counter[str] = Counter()

    async def client(kind: Callable[[Connection], Awaitable[None]]) -> None:
        await asyncio.sleep(random.random())
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):  # the server closed the connection
                connection = await asyncio.open_connection(host, port)
                tried[kind.__name__] += 1
                try:
                    await kind(connection)
                finally:
                    connection[1].transport.abort()
            await asyncio.sleep(PAUSE)

    tasks = [asyncio.create_task(client(kind)) for kind in islice(cycle(KINDS), count)]
    tasks.append(asyncio.create_task(_hold(share)))
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    failed = [each.exception() for each in tasks if each.done()]
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for error in failed:
        raise error or AssertionError("a client ended")
    return tried


async def _hold(share: float) -> None:
    """Stop the whole process while it has used more than its share."""
    began, used = time.monotonic(), time.process_time()
    while True:
        await asyncio.sleep(0.01)
        if share < 1:
            time.sleep(max(0.0, (time.process_time() - used) / share - (time.monotonic() - began)))


if __name__ == "__main__":
    host, port, count, seconds, share = sys.argv[1:]
    print(json.dumps(asyncio.run(attack(host, int(port), int(count), float(seconds), float(share)))))  # noqa: T201
