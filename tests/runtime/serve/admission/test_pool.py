"""Every lane is a place; a client that leaves neither blocks the queue nor takes a lane."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from runtime.serve.admission.pool import Pool
from runtime.serve.errors import ApiError
from tests.support.serve.pools import turn, with_pool


def test_the_replica_with_the_prompt_in_its_cache_is_taken() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        assert await pool.acquire([2], turn()) is replicas[2]
        assert await pool.acquire([2], turn()) is replicas[0]
        assert await pool.acquire([1], turn()) is replicas[1]

    with_pool(test, 3)


def test_first_come_first_served() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        order: list[int] = []

        async def client(name: int) -> None:
            replica = await pool.acquire([], turn())
            order.append(name)
            await asyncio.sleep(0)
            pool.release(replica)

        await asyncio.gather(*(client(name) for name in range(6)))
        assert order == list(range(6))
        assert not pool.waiting
        assert await pool.acquire([], turn()) is replicas[0]

    with_pool(test)


def test_waiting_is_limited() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        replica = await pool.acquire([], turn())
        with pytest.raises(ApiError, match=r"within 0\.01 s") as refused:
            await pool.acquire([], turn())
        assert (refused.value.status, refused.value.code) == (503, "queue_timeout")
        assert refused.value.headers["Retry-After"] == "1"
        pool.release(replica)
        assert await pool.acquire([], turn()) is replica

    with_pool(test, queue_seconds=0.01)


def test_a_replica_released_to_a_client_that_leaves_is_not_lost() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        replica = await pool.acquire([], turn())
        leaving = asyncio.create_task(pool.acquire([], turn()))
        await asyncio.sleep(0)
        pool.release(replica)  # the future has the replica, the task has not run yet
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await pool.acquire([], turn()) is replica

    with_pool(test)


def test_clients_that_left_the_queue_are_skipped() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        replica = await pool.acquire([], turn())
        leaves, stays = asyncio.create_task(pool.acquire([], turn())), asyncio.create_task(pool.acquire([], turn()))
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.sleep(0)
        assert pool.waiting == {0: 1}
        pool.release(replica)
        assert await stays is replica

    with_pool(test)


def test_a_full_server_refuses_the_next_request() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        with pool.admit(turn()), pool.admit(turn()), pool.admit(turn()), pytest.raises(ApiError) as refused, pool.admit(turn()):
            raise AssertionError("one too many")
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        assert int(refused.value.headers["Retry-After"]) >= 1
        with pool.admit(turn()):
            pass

    with_pool(test, queue=2)


def test_draining_refuses_waiting_and_new_requests() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        await pool.acquire([], turn())
        waits = asyncio.create_task(pool.acquire([], turn()))
        await asyncio.sleep(0)
        pool.drain()
        for refused in (waits, pool.acquire([], turn())):
            with pytest.raises(ApiError, match="shutting down"):
                await refused
        with pytest.raises(ApiError, match="shutting down"), pool.admit(turn()):
            raise AssertionError("admitted")

    with_pool(test)


def test_an_unhealthy_replica_is_dropped() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        first, second = await pool.acquire([], turn()), await pool.acquire([], turn())
        waits = asyncio.create_task(pool.acquire([], turn()))
        await asyncio.sleep(0)
        first.healthy = False
        pool.release(first)
        await asyncio.sleep(0)
        assert not waits.done()
        second.healthy = False
        pool.release(second)
        with pytest.raises(ApiError, match="every engine has failed"):
            await waits
        assert not pool.healthy

    with_pool(test, 2)


def test_a_replica_has_a_place_for_each_lane_and_the_least_busy_one_is_taken() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        first, second = replicas
        taken = [await pool.acquire([7], turn()) for _ in range(6)]
        assert [taken.count(each) for each in replicas] == [3, 3]
        waits = asyncio.create_task(pool.acquire([7], turn()))
        await asyncio.sleep(0)
        assert pool.waiting == {0: 1}
        pool.release(second)
        assert await waits is second
        for each in (first, first, second):
            pool.release(each)
        assert await pool.acquire([1, 8, 9], turn()) is first  # only the beginning is in the second one's cache, which is busier
        pool.release(first)
        assert await pool.acquire([1, 8], turn()) is second  # half of the prompt is

    with_pool(test, 2, lanes=3)


def test_a_waiting_request_gets_the_replica_that_has_its_prompt() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        taken = [await pool.acquire([], turn()) for _ in range(2)]
        waits = [asyncio.create_task(pool.acquire([prompt], turn())) for prompt in (1, 0)]
        await asyncio.sleep(0)
        replicas[1].healthy = False
        for each in taken:
            pool.release(each)
        await asyncio.sleep(0)
        assert [each.done() for each in waits] == [True, False]
        pool.release(replicas[0])
        assert await waits[1] is replicas[0]

    with_pool(test, 2)
