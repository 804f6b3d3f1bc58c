"""A short run of tests/stress/load_serve.py over toy decoders: it counts outcomes and notices wrong answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.stress.load_serve import LoadReport, load, load_requests
from tests.support.serve.fakes import ToyDecoder, ToyStream
from tests.support.serve.serving import serving


def loaded(toys: list[ToyDecoder], **settings: Any) -> LoadReport:
    seen = LoadReport()

    async def under_load() -> None:
        for toy in toys:
            toy.seconds = 0.002

    with serving(toys, **settings) as served:
        asyncio.run(load(f"{served.url}/v1", 12, 1.0, seen, under_load))
    return seen


def test_nothing_is_wrong_or_lost_and_refusals_are_counted() -> None:
    seen = loaded([ToyDecoder(), ToyDecoder()], queue=3, queue_seconds=0.05)
    assert seen.wrong == []
    assert seen.counts["answered"] > 0  # how many depends on how busy the machine is
    assert seen.refused["429 queue_full"] > 0
    assert seen.tokens > 0
    assert max(seen.queued) > 0


def test_a_wrong_token_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = ToyDecoder()
    right = ToyStream.__init__

    def wrong(self: ToyStream, decoder: ToyDecoder, tokens: list[int], *more: Any) -> None:
        right(self, decoder, [ord("!"), *tokens[1:]] if len(toy.asked) > len(load_requests()) else tokens, *more)

    monkeypatch.setattr(ToyStream, "__init__", wrong)
    seen = loaded([toy])
    assert seen.wrong


def test_a_lost_answer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.serve.reply.Reply._events", lambda self, answer, send: asyncio.sleep(0))  # ends without an answer
    seen = loaded([ToyDecoder()])
    assert seen.wrong
