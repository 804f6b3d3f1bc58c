"""A small form of hostile_clients.py, over a toy engine."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import httpx

from runtime.serve.protection.keys import Key, Keys
from runtime.serve.protection.settings import ConnectionLimits, Protection
from tests.stress.hostile_clients import KEY, Seen, honest
from tests.support.serve.fakes import ToyDecoder
from tests.support.serve.hostile import KINDS, attack
from tests.support.serve.serving import serving, until

MOST = 24


def test_honest_clients_are_answered_beside_hostile_ones() -> None:
    toy, seen = ToyDecoder(seconds=0.002, lanes=2), Seen()
    protection = Protection(Keys((Key("honest", sha256(KEY.encode()).digest()),)))
    with serving([toy], protection=protection, limits=ConnectionLimits(most=MOST, head_seconds=0.5)) as served:
        port = int(served.url.rpartition(":")[2])
        with ThreadPoolExecutor(1) as threads:
            attackers = threads.submit(asyncio.run, attack("127.0.0.1", port, 40, 3.0))
            asyncio.run(honest(f"{served.url}/v1", 4, 2.5, seen, seen.beside))
            most = len(served.server.server_state.connections)
            tried = attackers.result()
        assert seen.wrong == []
        assert len(seen.beside) > 20
        assert len(toy.asked) == seen.asked  # no wrong key reached the engine
        assert set(tried) == {kind.__name__ for kind in KINDS}
        assert most <= MOST
        assert httpx.get(f"{served.url}/readyz").status_code == 200
        until(lambda: len(served.server.server_state.connections) <= 1)  # the hostile ones are gone
