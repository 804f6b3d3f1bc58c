"""Watchers of cycles: nobody listens without them, a slow one loses cycles and knows how many."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from runtime.decoding.cycle import CycleEvent
from runtime.serve.admission.pool import Pool
from runtime.serve.errors import ApiError
from runtime.serve.page.hub import MAX_WAITING, MAX_WATCHERS, Hub
from runtime.serve.replica import Replica
from runtime.serve.settings import ServerSettings
from tests.support.serve.fakes import ToyDecoder


def with_hub(test: Any) -> None:
    """Run ``test`` with a Hub over two toys."""

    async def run() -> None:
        toys: list[Any] = [ToyDecoder(), ToyDecoder()]
        pool = Pool([Replica(toy, 3) for toy in toys], ServerSettings("toy"))
        test(Hub(pool), toys)
        await pool.close(5)

    asyncio.run(run())


def test_decoders_have_a_listener_only_while_somebody_watches() -> None:
    def test(hub: Hub, toys: list[Any]) -> None:
        assert [toy.listener for toy in toys] == [None, None]
        with hub.watching("me") as first, hub.watching(None) as second:
            for at in range(3):
                toys[at % 2].listener(CycleEvent(rows=at))
            for watcher in (first, second):
                assert [(replica, cycle.rows) for replica, _, cycle in watcher.take()] == [(0, 0), (0, 2), (1, 1)]
                assert watcher.take() == []
        assert [toy.listener for toy in toys] == [None, None]

    with_hub(test)


def test_a_watcher_that_does_not_read_loses_cycles_and_knows_it() -> None:
    def test(hub: Hub, toys: list[Any]) -> None:
        with hub.watching(None) as watcher:
            for at in range(MAX_WAITING + 7):
                toys[1].listener(CycleEvent(rows=at))
            assert (len(watcher.take()), watcher.dropped) == (MAX_WAITING, 7)
            toys[1].listener(CycleEvent(rows=1))
            assert (len(watcher.take()), watcher.dropped) == (1, 7)

    with_hub(test)


def test_there_are_only_so_many_watchers() -> None:
    def test(hub: Hub, toys: list[Any]) -> None:
        watching = [hub.watching(None) for _ in range(MAX_WATCHERS)]
        for each in watching:
            each.__enter__()
        with pytest.raises(ApiError, match="close one of them"), hub.watching(None):
            pass
        for each in watching:
            each.__exit__(None, None, None)
        with hub.watching(None):
            assert toys[0].listener

    with_hub(test)


def test_after_a_reload_the_new_decoders_are_heard() -> None:
    def test(hub: Hub, toys: list[Any]) -> None:
        new: list[Any] = [ToyDecoder(), ToyDecoder()]
        with hub.watching(None) as watcher:
            hub.pool.replace([Replica(toy, 3) for toy in new])
            new[1].listener(CycleEvent(rows=4))
            assert [toy.listener for toy in toys] == [None, None]
            assert [(replica, cycle.rows) for replica, _, cycle in watcher.take()] == [(1, 4)]
        assert [toy.listener for toy in new] == [None, None]

    with_hub(test)
