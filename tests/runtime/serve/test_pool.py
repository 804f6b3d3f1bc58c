"""The queue is bounded and first come, first served; a client that leaves neither blocks it nor takes a replica."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from runtime.serve.errors import ApiError
from runtime.serve.pool import Pool
from runtime.serve.settings import ServerSettings


class FakeReplica:
    def __init__(self, *cached: int) -> None:
        self.cached, self.healthy, self.running = cached, True, None

    def common_prefix(self, prompt: Any) -> int:
        return len(set(self.cached) & set(prompt))


def with_pool(test: Callable[[Pool, list[Any]], Awaitable[None]], count: int = 1, **settings: Any) -> None:
    """Run ``test`` with a pool of ``count`` fake replicas. ``settings``: fields of ServerSettings."""
    replicas: list[Any] = [FakeReplica(at) for at in range(count)]

    async def run() -> None:
        await test(Pool(replicas, ServerSettings("toy", **settings)), replicas)

    asyncio.run(run())


def test_the_replica_with_the_prompt_in_its_cache_is_taken() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        assert await pool.acquire([2]) is replicas[2]
        assert await pool.acquire([2]) is replicas[0]
        assert await pool.acquire([1]) is replicas[1]

    with_pool(test, 3)


def test_first_come_first_served() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        order: list[int] = []

        async def client(name: int) -> None:
            replica = await pool.acquire([])
            order.append(name)
            await asyncio.sleep(0)
            pool.release(replica)

        await asyncio.gather(*(client(name) for name in range(6)))
        assert order == list(range(6))
        assert pool.waiting == 0
        assert await pool.acquire([]) is replicas[0]

    with_pool(test)


def test_waiting_is_limited() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        replica = await pool.acquire([])
        with pytest.raises(ApiError, match=r"within 0\.01 s") as refused:
            await pool.acquire([])
        assert (refused.value.status, refused.value.code) == (503, "queue_timeout")
        assert refused.value.headers["Retry-After"] == "1"
        pool.release(replica)
        assert await pool.acquire([]) is replica

    with_pool(test, queue_seconds=0.01)


def test_a_replica_released_to_a_client_that_leaves_is_not_lost() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        replica = await pool.acquire([])
        leaving = asyncio.create_task(pool.acquire([]))
        await asyncio.sleep(0)
        pool.release(replica)  # the future has the replica, the task has not run yet
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await pool.acquire([]) is replica

    with_pool(test)


def test_clients_that_left_the_queue_are_skipped() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        replica = await pool.acquire([])
        leaves, stays = asyncio.create_task(pool.acquire([])), asyncio.create_task(pool.acquire([]))
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.sleep(0)
        assert pool.waiting == 1
        pool.release(replica)
        assert await stays is replica

    with_pool(test)


def test_a_full_server_refuses_the_next_request() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        with pool.admit(), pool.admit(), pool.admit(), pytest.raises(ApiError) as refused, pool.admit():
            raise AssertionError("one too many")
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        assert int(refused.value.headers["Retry-After"]) >= 1
        with pool.admit():
            pass

    with_pool(test, queue=2)


def test_draining_refuses_waiting_and_new_requests() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        await pool.acquire([])
        waits = asyncio.create_task(pool.acquire([]))
        await asyncio.sleep(0)
        pool.drain()
        for refused in (waits, pool.acquire([])):
            with pytest.raises(ApiError, match="shutting down"):
                await refused
        with pytest.raises(ApiError, match="shutting down"), pool.admit():
            raise AssertionError("admitted")

    with_pool(test)


def test_an_unhealthy_replica_is_dropped() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        first, second = await pool.acquire([]), await pool.acquire([])
        waits = asyncio.create_task(pool.acquire([]))
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
