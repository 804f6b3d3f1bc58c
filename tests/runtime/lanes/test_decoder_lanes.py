"""`Decoder(lanes=N)` on real graphs: many threads get what each request gets alone, and what plain decoding gives."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policy import FixedPolicy, Policy, TreeSpec
from runtime import Chunk, Decoder, DecoderBusy, Result, SamplingParams
from runtime.decoding.stats import RequestCounters
from tests.support.decoder_lanes import LANES, LONG, PROMPT, Wandering, expect_same, forest_of
from tests.support.serve.serving import until

POLICIES: list[Policy | str | None] = [None, "none", "cost-model", "fixed", FixedPolicy(TreeSpec(12, 4, 3)), Wandering()]


def requests(count: int, seed: int) -> list[tuple[list[int], SamplingParams]]:
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        beginning = list(range(5, 90)) if number % 3 == 0 else []
        prompt = [*beginning, *random.integers(3, 100, int(random.integers(1, 120))).tolist()]
        sampling = SamplingParams() if number % 2 else SamplingParams(temperature=float(random.uniform(0.4, 1.3)), top_p=0.95, seed=number)
        made.append((prompt, replace(sampling, max_new_tokens=int(random.integers(1, 50)), logprobs=2 if number % 4 < 2 else None)))
    return made


@pytest.mark.parametrize("draft", ["eagle+ngram", "eagle", "ngram", "none"])
def test_many_threads_get_what_each_request_gets_alone(engine: Path, draft: str) -> None:
    wanted = requests(16, len(draft))
    with Decoder(engine, threads=1, draft=draft, lanes=LANES) as decoder:
        alone = [decoder.generate(*request, policy="none") for request in wanted]
        for request, expected in zip(wanted[:5], alone[:5], strict=True):
            for policy in POLICIES:
                expect_same(decoder.generate(*request, policy=policy), expected)
        with ThreadPoolExecutor(LANES) as pool:
            results = list(pool.map(lambda at: decoder.generate(*wanted[at], policy=POLICIES[at % len(POLICIES)]), range(len(wanted))))
        for result, expected in zip(results, alone, strict=True):
            expect_same(result, expected)
        totals = decoder.totals
        until(lambda: forest_of(decoder).idle)
    assert totals.generation_tokens == sum(len(each.tokens) for each in [*alone, *results]) + sum(
        len(POLICIES) * len(each.tokens) for each in alone[:5]
    )
    assert totals.passes < sum(totals.actions.values())
    assert totals.rows == totals.num_draft_tokens + sum(totals.actions.values())
    if decoder.manifest.rotated:
        return  # one lane adds in other groups, and rounding to one digit enlarges that (docs/design.md, section 7)
    with Decoder(engine, threads=1, draft=draft) as one_lane:
        for request, expected in zip(wanted[:6], alone[:6], strict=True):
            assert one_lane.generate(*request).tokens == expected.tokens


def test_chunks_say_what_was_verified(decoder: Decoder) -> None:
    for policy in POLICIES:
        with decoder.stream(PROMPT, SamplingParams(max_new_tokens=40), policy=policy) as stream:
            first, *chunks = stream
        assert (first.spec, first.nodes, len(first.tokens)) == (None, 0, 1)
        assert all(chunk.tokens for chunk in chunks[:-1])
        verified = [chunk for chunk in chunks if chunk.tokens]  # the last may bring the rest of a text only
        for chunk in verified:
            assert chunk.spec is not None
            assert 1 <= chunk.nodes <= max(chunk.spec.nodes, 1)
            assert chunk.accepted < chunk.nodes
            if policy is None:
                assert chunk.spec.nodes == chunk.nodes  # the row budget asked for what was verified
        assert stream.stats.drafted == sum(chunk.nodes - 1 for chunk in verified)
        assert stream.stats.accepted == sum(chunk.accepted for chunk in verified)


def test_ends_of_every_kind_leave_the_neighbours_alone(decoder: Decoder) -> None:
    whole = decoder.generate(PROMPT, SamplingParams(max_new_tokens=60, temperature=0.7, seed=3))
    sampling = SamplingParams(max_new_tokens=60, temperature=0.7, seed=3)
    place = next(place for place in range(8, 50) if whole.text[place : place + 2].isascii())
    for _ in range(6):
        with decoder.stream(PROMPT, sampling) as neighbour:
            stop = whole.text[place : place + 2]
            stopped = decoder.generate(PROMPT, replace(sampling, stop=[stop]))
            assert (stopped.stop, stopped.text) == ("stop_string", whole.text[: whole.text.index(stop)])
            late = decoder.generate(PROMPT, replace(sampling, deadline=0))
            assert (late.stop, late.tokens) == ("deadline", ())
            assert decoder.generate(PROMPT, replace(sampling, max_new_tokens=1)).tokens == whole.tokens[:1]
            cancelled = decoder.stream(PROMPT, sampling)
            next(cancelled)
            cancelled.cancel()
            tokens = tuple(token for chunk in cancelled for token in chunk.tokens)
            assert tokens == whole.tokens[1 : 1 + len(tokens)]
            assert cancelled.stop in ("cancelled", whole.stop)
            dropped = decoder.stream(PROMPT, sampling)
            next(dropped)
            del dropped
            expect_same(neighbour.result(), whole)


def test_a_closed_stream_gives_nothing_more(decoder: Decoder) -> None:
    stream = decoder.stream(PROMPT, SamplingParams(max_new_tokens=300))
    next(stream)
    until(lambda: stream._active.request.counters.cycles > 3)  # so chunks wait to be read
    stream.close()
    assert list(stream) == []
    assert stream.stop == "cancelled"


def test_two_threads_may_read_one_stream(decoder: Decoder) -> None:
    expected = decoder.generate(PROMPT, SamplingParams(max_new_tokens=200))
    stream = decoder.stream(PROMPT, SamplingParams(max_new_tokens=200))
    with ThreadPoolExecutor(3) as pool:
        parts: list[list[Chunk]] = list(pool.map(lambda _: list(stream), range(3)))
    assert sorted(token for part in parts for chunk in part for token in chunk.tokens) == sorted(expected.tokens)
    assert stream.stop == expected.stop


def test_a_prompt_may_fill_the_context(engine: Path, decoder: Decoder) -> None:
    for length in (254, 255):
        prompt = [5 + at % 90 for at in range(length)]
        with Decoder(engine, threads=1) as one_lane:
            expected = one_lane.generate(prompt, LONG)
        streams = [decoder.stream(prompt, LONG) for _ in range(LANES)]
        for stream in streams:
            expect_same(stream.result(), expected)


def test_one_more_than_there_are_lanes_and_a_place_is_free_when_its_end_is_seen(decoder: Decoder) -> None:
    streams = [decoder.stream(PROMPT, SamplingParams(max_new_tokens=250)) for _ in range(LANES)]
    with pytest.raises(DecoderBusy, match="all Streams of this Decoder are still open"):
        decoder.stream(PROMPT)
    with pytest.raises(DecoderBusy):
        decoder.forget()
    with pytest.raises(DecoderBusy):
        decoder.warmup()
    streams[0].close()
    for _ in range(30):
        assert len(decoder.generate([7, 8], SamplingParams(max_new_tokens=1)).tokens) == 1
    for stream in streams:
        stream.close()


def test_after_forget_nothing_is_known_not_even_of_a_stream_that_was_just_closed(decoder: Decoder) -> None:
    for _ in range(10):
        stream = decoder.stream(PROMPT * 5, SamplingParams(max_new_tokens=100))
        next(stream)
        stream.close()
        decoder.forget()
        assert decoder.generate(PROMPT * 5, SamplingParams(max_new_tokens=1)).stats.cached_prompt_tokens == 0
    assert decoder.generate(PROMPT * 5, SamplingParams(max_new_tokens=1)).stats.cached_prompt_tokens > 50
    other = [decoder.generate(PROMPT * 5, SamplingParams(max_new_tokens=1), tenant="other").stats.cached_prompt_tokens for _ in range(2)]
    assert (other[0], other[1] > 50) == (0, True)


def test_statistics_may_be_read_while_rounds_are_added() -> None:
    counters, done = RequestCounters(1), threading.Event()

    def add() -> None:
        number = 0
        while not done.is_set():
            number += 1
            counters.rounds_by_accepted[number % 50] = counters.actions[number % 50, 1, 1] = 1
            if number % 50 == 0:
                counters.rounds_by_accepted.clear()
                counters.actions.clear()

    thread = threading.Thread(target=add)
    thread.start()
    try:
        for _ in range(3000):
            counters.stats()
    finally:
        done.set()
        thread.join()


def test_asyncio_readers_get_the_same_and_a_cancelled_task_frees_its_lane(decoder: Decoder) -> None:
    expected = decoder.generate(PROMPT, SamplingParams(max_new_tokens=100))

    async def read(params: SamplingParams) -> list[int]:
        return [token async for chunk in decoder.astream(PROMPT, params) for token in chunk.tokens]

    async def all_of_them() -> list[list[int]]:
        tasks = [asyncio.create_task(read(SamplingParams(max_new_tokens=100))) for _ in range(LANES - 1)]
        leaving = asyncio.create_task(read(SamplingParams(max_new_tokens=300)))
        await asyncio.sleep(0.02)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        return await asyncio.gather(*tasks)

    for tokens in asyncio.run(all_of_them()):
        assert tuple(tokens) == expected.tokens


def test_a_cancelled_task_of_one_lane_leaves_no_round_running(engine: Path) -> None:
    """Its round runs in a thread, which cannot be cancelled: a request that began beside it would share its caches."""

    async def leave(decoder: Decoder, begun: asyncio.Event) -> None:
        async for _ in decoder.astream(PROMPT, SamplingParams(max_new_tokens=300)):
            begun.set()

    async def read_after_leaving(decoder: Decoder) -> Result:
        begun = asyncio.Event()
        leaving = asyncio.create_task(leave(decoder, begun))
        await begun.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert not any(each.in_pass for each in decoder._running)
        return await asyncio.to_thread(decoder.generate, PROMPT, SamplingParams(max_new_tokens=30))

    with Decoder(engine, threads=1) as decoder:
        expected = decoder.generate(PROMPT, SamplingParams(max_new_tokens=30))
        for _ in range(5):
            expect_same(asyncio.run(read_after_leaving(decoder)), expected)


def test_warm_up_counts_nothing_and_a_fork_has_lanes_of_its_own(decoder: Decoder) -> None:
    expected = decoder.generate(PROMPT, SamplingParams(max_new_tokens=30))
    with decoder.fork() as fork:
        fork.warmup()
        assert fork.lanes == LANES
        assert (fork.totals.passes, fork.totals.requests) == (0, {})
        streams = [each.stream(PROMPT, SamplingParams(max_new_tokens=30)) for each in [fork, decoder] * LANES]
        for stream in streams:
            expect_same(stream.result(), expected)
