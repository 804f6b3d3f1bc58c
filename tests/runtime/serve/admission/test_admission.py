"""Who goes first, who is refused, and how many run: priorities, clients' turns, deadlines and the target of milliseconds per token."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from runtime.serve.admission.pool import Pool
from runtime.serve.admission.turn import Turn
from runtime.serve.errors import ApiError
from tests.support.serve.pools import Request, turn, with_pool


def test_priority_and_turns_decide_who_is_next() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        await pool.acquire([], turn())
        order: list[str] = []

        async def client(name: str, priority: int) -> None:
            replica = await pool.acquire([], turn(name, priority))
            order.append(f"{name}{priority}")
            pool.release(replica)

        tasks = [asyncio.create_task(client(*each)) for each in (("a", 1), ("a", 1), ("a", 1), ("b", 1), ("c", 0))]
        await asyncio.sleep(0)
        assert pool.waiting == {1: 4, 0: 1}
        pool.release(replicas[0])
        await asyncio.gather(*tasks)
        assert order == ["c0", "a1", "b1", "a1", "a1"]

    with_pool(test)


def test_a_full_server_drops_the_greediest_client_s_newest_request_for_another_client() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        started, end = [], asyncio.Event()

        async def client(name: str) -> None:
            with pool.admit(turn(name[0])):
                await pool.acquire([], turn(name[0]))
                started.append(name)
                await end.wait()

        tasks = [asyncio.create_task(client(f"a{number}")) for number in range(4)]  # one runs, three wait
        await asyncio.sleep(0)
        late = asyncio.create_task(client("b0"))
        with pytest.raises(ApiError) as refused:
            await tasks[3]
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        with pytest.raises(ApiError, match="the server is full"):
            await client("a4")
        for _ in range(3):
            pool.release(replicas[0])
        end.set()
        await asyncio.gather(*tasks[:3], late)
        assert started == ["a0", "a1", "b0", "a2"]

    with_pool(test, queue=3)


def test_the_target_keeps_lanes_free_but_one_request_runs() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        (replica,) = replicas
        replica.decoder.pace.token_seconds, replica.decoder.pace.round_seconds = 0.02, 0.0
        assert await pool.acquire([], turn()) is replica  # nothing else runs
        waits = asyncio.create_task(pool.acquire([], turn()))
        await asyncio.sleep(0.1)
        assert not waits.done()
        replica.decoder.pace.token_seconds = 0.01
        assert await asyncio.wait_for(waits, 5) is replica  # without any lane becoming free
        replica.decoder.pace.round_seconds = 100.0  # the average does not know yet what the second one costs
        third = asyncio.create_task(pool.acquire([], turn()))
        await asyncio.sleep(0.1)
        assert not third.done()
        pool.release(replica)
        pool.release(replica)
        assert await third is replica

    with_pool(test, lanes=4, target_ms_per_token=10.0)


def refused_deadline(pool: Pool, wanted: Turn) -> str:
    with pytest.raises(ApiError) as refused, pool.admit(wanted):
        raise AssertionError("admitted")
    assert (refused.value.status, refused.value.code, refused.value.outcome) == (503, "deadline", "deadline")
    assert "Retry-After" in refused.value.headers
    return str(refused.value)


def test_a_deadline_that_cannot_be_met_is_told_at_once() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        (replica,) = replicas
        replica.decoder.pace.token_seconds = 0.5
        with pool.admit(turn(seconds=0.1)):  # nothing runs, so nothing is known of now
            pass
        finish: list[Any] = [[], []]
        for each in finish:
            pool.run(await pool.acquire([], turn()), Request(each))  # type: ignore[arg-type]
        assert "0.0 s of waiting and 10.0 s of decoding" in refused_deadline(pool, turn(seconds=9.0, tokens=20))
        with pool.admit(turn(seconds=11.0, tokens=20)):
            pass
        await asyncio.sleep(0.2)
        for each in finish:
            each[0]()  # the mean time of a request is 0.2 s now
        for _ in range(2):
            pool.run(await pool.acquire([], turn()), Request([]))  # type: ignore[arg-type]
        replica.decoder.pace.token_seconds = 0.001
        tasks = [asyncio.create_task(pool.acquire([], turn())) for _ in range(10)]
        await asyncio.sleep(0)
        refused_deadline(pool, turn(seconds=0.5))  # behind ten requests, five on a lane
        for allowed in (turn(seconds=0.5, priority=-1), turn(client="other", seconds=0.5), turn(seconds=60.0)):
            with pool.admit(allowed):
                pass
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with_pool(test, lanes=2)


def test_a_wait_ends_with_the_deadline() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        await pool.acquire([], turn())
        with pytest.raises(ApiError) as late:
            await pool.acquire([], turn(seconds=0.05))
        assert (late.value.status, late.value.code) == (504, "deadline")

    with_pool(test)
