"""The queue: first come first served, bounded, fair to those who leave, and nothing is given to those who left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from runtime.serve.errors import ApiError
from runtime.serve.pool import Pool
from runtime.serve.settings import ServerSettings


class FakeReplica:
    def __init__(self, *seen: int) -> None:
        self.seen, self.healthy, self.running = seen, True, None

    def shared(self, prompt: Any) -> int:
        return len(set(self.seen) & set(prompt))


def pooled(test: Callable[[Pool, list[Any]], Awaitable[None]], count: int = 1, **settings: Any) -> None:
    replicas: list[Any] = [FakeReplica(at) for at in range(count)]

    async def run() -> None:
        await test(Pool(replicas, ServerSettings("toy", **settings)), replicas)

    asyncio.run(run())


def test_the_replica_that_knows_the_prompt_is_taken() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        assert await pool.replica([2]) is replicas[2]
        assert await pool.replica([2]) is replicas[0]
        assert await pool.replica([1]) is replicas[1]

    pooled(test, 3)


def test_first_come_first_served() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        order: list[int] = []

        async def client(name: int) -> None:
            replica = await pool.replica([])
            order.append(name)
            await asyncio.sleep(0)
            pool.give_back(replica)

        await asyncio.gather(*(client(name) for name in range(6)))
        assert order == list(range(6))
        assert pool.waiting == 0
        assert await pool.replica([]) is replicas[0]

    pooled(test)


def test_waiting_has_an_end() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        replica = await pool.replica([])
        with pytest.raises(ApiError, match=r"within 0\.01 s") as refused:
            await pool.replica([])
        assert (refused.value.status, refused.value.code) == (503, "queue_timeout")
        assert refused.value.headers["Retry-After"] == "1"
        pool.give_back(replica)
        assert await pool.replica([]) is replica

    pooled(test, queue_seconds=0.01)


def test_a_replica_that_comes_while_its_client_leaves_is_not_lost() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        replica = await pool.replica([])
        leaving = asyncio.create_task(pool.replica([]))
        await asyncio.sleep(0)
        pool.give_back(replica)  # the future has it, the task does not know yet
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await pool.replica([]) is replica

    pooled(test)


def test_clients_who_left_the_queue_are_passed_over() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        replica = await pool.replica([])
        left, stays = asyncio.create_task(pool.replica([])), asyncio.create_task(pool.replica([]))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        assert pool.waiting == 1
        pool.give_back(replica)
        assert await stays is replica

    pooled(test)


def test_the_house_holds_so_many_and_tells_the_next() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        with pool.place(), pool.place(), pool.place(), pytest.raises(ApiError) as refused, pool.place():
            raise AssertionError("one too many")
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        assert int(refused.value.headers["Retry-After"]) >= 1
        with pool.place():
            pass

    pooled(test, queue=2)


def test_draining_refuses_those_who_wait_and_those_who_come() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        await pool.replica([])
        waits = asyncio.create_task(pool.replica([]))
        await asyncio.sleep(0)
        pool.drain()
        for refused in (waits, pool.replica([])):
            with pytest.raises(ApiError, match="shutting down"):
                await refused
        with pytest.raises(ApiError, match="shutting down"), pool.place():
            raise AssertionError("let in")

    pooled(test)


def test_a_sick_replica_does_not_come_back() -> None:
    async def test(pool: Pool, replicas: list[Any]) -> None:
        first, second = await pool.replica([]), await pool.replica([])
        waits = asyncio.create_task(pool.replica([]))
        await asyncio.sleep(0)
        first.healthy = False
        pool.give_back(first)
        await asyncio.sleep(0)
        assert not waits.done()
        second.healthy = False
        pool.give_back(second)
        with pytest.raises(ApiError, match="every engine has failed"):
            await waits
        assert not pool.healthy

    pooled(test, 2)
