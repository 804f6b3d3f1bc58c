"""The queue is bounded and first come, first served; a client that leaves neither blocks it nor takes a replica."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.serve.errors import ApiError
from runtime.serve.line import Turn
from runtime.serve.pool import Pool
from runtime.serve.settings import ServerSettings


class FakeReplica:
    def __init__(self, lanes: int, *cached: int) -> None:
        self.lanes, self.cached, self.healthy, self.running = lanes, cached, True, set[Any]()
        self.decoder = SimpleNamespace(round_seconds=0.0, seconds_per_token=0.0)

    def common_prefix(self, prompt: Any) -> int:
        return len(set(self.cached) & set(prompt))

    def start(self, request: Any, on_free: Callable[[], None]) -> None:
        """The test decides when the request ends: it finds ``finish`` in the request's list."""

        def finish() -> None:
            self.running.remove(request)
            on_free()

        self.running.add(request)
        request.ends.append(finish)


@dataclass(frozen=True, eq=False)
class Request:
    ends: list[Any]


def with_pool(test: Callable[[Pool, list[Any]], Awaitable[None]], count: int = 1, lanes: int = 1, **settings: Any) -> None:
    """Run ``test`` with a pool of ``count`` fake replicas. ``settings``: fields of ServerSettings."""
    replicas: list[Any] = [FakeReplica(lanes, at) for at in range(count)]

    async def run() -> None:
        await test(Pool(replicas, ServerSettings("toy", **settings)), replicas)

    asyncio.run(run())


def turn(client: str = "me", priority: int = 0, seconds: float = 1000.0, tokens: int = 1) -> Turn:
    return Turn(client, priority, monotonic() + seconds, seconds, tokens)


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
        replica.decoder.seconds_per_token, replica.decoder.round_seconds = 0.02, 0.0
        assert await pool.acquire([], turn()) is replica  # nothing else runs
        waits = asyncio.create_task(pool.acquire([], turn()))
        await asyncio.sleep(0.1)
        assert not waits.done()
        replica.decoder.seconds_per_token = 0.01
        assert await asyncio.wait_for(waits, 5) is replica  # without any lane becoming free
        replica.decoder.round_seconds = 100.0  # the average does not know yet what the second one costs
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
        replica.decoder.seconds_per_token = 0.5
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
        replica.decoder.seconds_per_token = 0.001
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
