"""One request: log-probabilities, deadline and counters."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from policy import PLAIN, FixedPolicy, TreeSpec
from runtime import Decoder, Result, SamplingParams, TokenLogprob
from runtime.decoding.logprobs import token_logprob
from runtime.decoding.totals import TotalsRecorder
from tests.support.eagle_engines import export_echo

TREE, PROMPT = FixedPolicy(TreeSpec(12, 4, 3)), list(range(5, 25))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_echo(tmp_path_factory.mktemp("requests"), "--prefill-rows", "64")


@pytest.fixture(scope="module")
def eagle(engine: Path) -> Iterator[Decoder]:
    with Decoder(engine, threads=1) as decoder:
        yield decoder


# --- log-probabilities ---


def true_logprobs(decoder: Decoder, tokens: list[int], start: int) -> np.ndarray:
    """Log-probabilities [n, V] of the target after each of ``tokens[start - 1 : -1]``, by plain decoding, in float64."""
    target, rows = decoder.models.target, []
    target.cache.truncate(0)
    list(target.prefill(tokens[: start - 1]))
    for token in tokens[start - 1 : -1]:
        logits = target.verify_chain([token]).logits[0].astype(np.float64)
        target.commit([0])
        rows.append(logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
    return np.stack(rows)


def expect_true(decoder: Decoder, prompt: list[int], result: Result, top: int) -> None:
    assert result.logprobs is not None
    assert [each.token for each in result.logprobs] == list(result.tokens)
    true = true_logprobs(decoder, [*prompt, *result.tokens], len(prompt))
    for each, row in zip(result.logprobs, true, strict=True):
        assert each.logprob == pytest.approx(row[each.token], abs=1e-4)
        assert len(each.top) == top
        for (token, logprob), expected in zip(each.top, np.sort(row)[::-1], strict=False):
            assert logprob == pytest.approx(expected, abs=1e-4)
            assert logprob == pytest.approx(row[token], abs=1e-4)


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=1.3, top_k=30, top_p=0.9, seed=2)], ids=str)
@pytest.mark.parametrize("top", [0, 1, 20])
def test_logprobs_are_the_targets_own_before_temperature_and_cuts(eagle: Decoder, sampling: SamplingParams, top: int) -> None:
    with eagle.stream(PROMPT, replace(sampling, max_new_tokens=30, logprobs=top), policy=TREE) as stream:
        chunks = list(stream)
    for chunk in chunks:
        assert chunk.logprobs is not None
        assert tuple(each.token for each in chunk.logprobs) == chunk.tokens
    assert max(len(chunk.tokens) for chunk in chunks) > 1  # or no block was accepted
    result = eagle.generate(PROMPT, replace(sampling, max_new_tokens=30, logprobs=top), policy=TREE)
    assert result.logprobs == tuple(each for chunk in chunks for each in chunk.logprobs or ())
    assert result.tokens == eagle.generate(PROMPT, replace(sampling, max_new_tokens=30), policy=TREE).tokens
    expect_true(eagle, PROMPT, result, top)


def test_without_asking_there_are_none(eagle: Decoder) -> None:
    with eagle.stream(PROMPT, SamplingParams(max_new_tokens=5)) as stream:
        assert [chunk.logprobs for chunk in stream if chunk.logprobs is not None] == []
    assert stream.result().logprobs is None


def test_text_tokens_and_logprobs_end_together_inside_an_accepted_block(eagle: Decoder) -> None:
    """As in vllm#47616: after a stop string that ends inside a block there must be neither tokens nor log-probabilities."""
    cut = 0
    for seed in range(5):
        sampling = SamplingParams(temperature=0.7, seed=seed)
        whole = eagle.generate(PROMPT, replace(sampling, max_new_tokens=40, logprobs=2), policy=TREE)
        assert whole.logprobs is not None
        for place in range(1, 40):
            stop = whole.text[place : place + 2]
            if len(stop) < 2 or not stop.isascii():  # an incomplete character looks the same as an invalid one
                continue
            with eagle.stream(PROMPT, replace(sampling, max_new_tokens=40, logprobs=2, stop=[stop]), policy=TREE) as stream:
                chunks = list(stream)
            tokens = tuple(token for chunk in chunks for token in chunk.tokens)
            assert "".join(chunk.text for chunk in chunks) == whole.text[: whole.text.index(stop)]
            assert stream.stop == "stop_string"
            assert tokens == whole.tokens[: len(tokens)]
            assert stop in eagle.decode(tokens)
            assert stop not in eagle.decode(tokens[:-1])
            assert tuple(each for chunk in chunks for each in chunk.logprobs or ()) == whole.logprobs[: len(tokens)]
            assert stream.stats.new_tokens == len(tokens)
            last = chunks[-1]
            cut += last.spec is not None and last.accepted == len(last.tokens) > 0  # the block continued after the stop
    assert cut > 2


def test_a_special_token_as_a_stop_string(eagle: Decoder) -> None:
    """It ends the answer although its text is not part of it, inside a block as well."""
    cut = 0
    for seed in range(12):
        sampling = SamplingParams(temperature=100.0, seed=seed, max_new_tokens=60)
        whole = eagle.generate(PROMPT, sampling, policy=TREE)
        place = next((place for place, token in enumerate(whole.tokens) if token in (0, 1)), None)
        if place is None:
            continue
        cut += 1
        stopped = eagle.generate(PROMPT, replace(sampling, stop=["<unk>", "<s>"]), policy=TREE)
        assert (stopped.stop, stopped.tokens) == ("stop_string", whole.tokens[: place + 1])
        assert stopped.text == eagle.decode(stopped.tokens)
    assert cut > 1


def test_ties_go_to_the_lower_token_and_all_of_a_small_vocabulary_can_be_asked_for() -> None:
    found = token_logprob(np.zeros(6, np.float32), 4, 3)
    assert found == TokenLogprob(4, pytest.approx(-np.log(6)), tuple((token, pytest.approx(-np.log(6))) for token in range(3)))
    assert len(token_logprob(np.zeros(6, np.float32), 4, 20).top) == 6


@pytest.mark.parametrize(
    "bad", [{"logprobs": -1}, {"logprobs": 21}, {"logprobs": True}, {"deadline": -1.0}, {"deadline": float("nan")}], ids=str
)
def test_bad_wishes_fail_at_the_call(eagle: Decoder, bad: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(bad))):
        eagle.stream(PROMPT, **bad)


def test_a_temperature_too_small_to_divide_by_is_greedy(eagle: Decoder) -> None:
    greedy = eagle.generate(PROMPT, SamplingParams(max_new_tokens=20))
    for temperature in (5e-324, 1e-300, 1e-38, 1e-9):
        assert eagle.generate(PROMPT, SamplingParams(temperature=temperature, seed=1, max_new_tokens=20)).tokens == greedy.tokens
    eagle.generate(PROMPT, SamplingParams(temperature=1e-5, seed=1, max_new_tokens=20))  # not NaN
    for bad in ({"top_k": 2**40}, {"top_k": -1}, {"seed": 2**64}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            SamplingParams(temperature=1.0, **bad)


# --- deadline ---


def test_a_deadline_ends_the_answer_after_the_running_round(eagle: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    import runtime.request as request

    whole = eagle.generate(PROMPT, SamplingParams(max_new_tokens=40), policy=TREE)
    with eagle.stream(PROMPT, SamplingParams(max_new_tokens=40, deadline=1000), policy=TREE) as stream:
        came = [next(stream), next(stream), next(stream)]
        monkeypatch.setattr(request, "perf_counter", lambda: perf_counter() + 1000)
        assert [chunk for chunk in stream if chunk.tokens] == []
    assert stream.stop == "deadline"
    tokens = tuple(token for chunk in came for token in chunk.tokens)
    assert tokens == whole.tokens[: len(tokens)]


@pytest.mark.parametrize("passes", [0, 1, 3, 4])
def test_a_deadline_over_before_the_prompt_is_read_leaves_no_tokens(eagle: Decoder, monkeypatch: pytest.MonkeyPatch, passes: int) -> None:
    prompt = PROMPT * 11  # four passes
    target, prefill = eagle.models.target, type(eagle.models.target)._run_chunk
    eagle.forget()
    count = 0

    def slow(self: Any, chunk: Any) -> Any:
        nonlocal count
        count += 1
        return prefill(self, chunk)

    import runtime.request as request

    monkeypatch.setattr(type(target), "_run_chunk", slow)
    monkeypatch.setattr(request, "perf_counter", lambda: perf_counter() + (1000 if count >= passes else 0))
    result = eagle.generate(prompt, SamplingParams(max_new_tokens=5, deadline=1000))
    assert (result.stop, result.tokens, result.text, result.stats.new_tokens, count) == ("deadline", (), "", 0, passes)


def test_an_answer_that_is_complete_is_not_called_late(eagle: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    import runtime.request as request

    with eagle.stream(PROMPT, SamplingParams(max_new_tokens=1, deadline=1000)) as stream:
        next(stream)
        monkeypatch.setattr(request, "perf_counter", lambda: perf_counter() + 1000)
        list(stream)
    assert stream.stop == "length"
    assert eagle.generate(PROMPT, SamplingParams(max_new_tokens=3, deadline=float("inf"))).stop == "length"


# --- counters ---


def test_totals_are_the_sums_of_what_requests_said(engine: Path) -> None:
    with Decoder(engine, threads=1) as decoder:
        decoder.warmup()
        assert decoder.totals.as_dict() == Decoder(engine, threads=1).totals.as_dict()  # nothing of it is counted
        results = [
            decoder.generate(PROMPT, SamplingParams(max_new_tokens=30), policy=TREE),
            decoder.generate([*PROMPT, 9], SamplingParams(max_new_tokens=30), policy=FixedPolicy(PLAIN)),
            decoder.generate(PROMPT, SamplingParams(temperature=1.0, seed=1, max_new_tokens=30)),
            decoder.generate(PROMPT, SamplingParams(deadline=0)),
        ]
        with decoder.stream(PROMPT, policy=TREE) as stream:
            chunks = [next(stream) for _ in range(4)]
        decoder.stream(PROMPT)  # dropped without a step
        stats, totals = [*(result.stats for result in results), stream.stats], decoder.totals
    assert totals.requests == {"length": 3, "deadline": 1, "cancelled": 2}
    assert totals.prompt_tokens == sum(each.prompt_tokens for each in stats) + len(PROMPT)
    assert totals.generation_tokens == sum(each.new_tokens for each in stats)
    assert totals.cached_prompt_tokens == sum(each.cached_prompt_tokens for each in stats) > 0
    assert totals.num_draft_tokens == sum(each.drafted for each in stats)
    assert totals.num_accepted_tokens == sum(each.accepted for each in stats) == sum(totals.num_accepted_tokens_per_pos)
    assert totals.num_drafts == sum(rounds for each in stats for spec, rounds in each.actions.items() if not spec.startswith("1,"))
    assert totals.mean_acceptance_length == pytest.approx(1 + totals.num_accepted_tokens / totals.num_drafts)
    assert totals.draft_acceptance_rate == pytest.approx(totals.num_accepted_tokens / totals.num_draft_tokens)
    assert totals.num_accepted_tokens_per_pos == tuple(sorted(totals.num_accepted_tokens_per_pos, reverse=True))
    assert totals.passes == sum(totals.actions.values()) == sum(each.cycles for each in stats)  # one lane: a pass a round
    assert totals.rows == sum(each.drafted + each.cycles for each in stats)
    assert totals.decode_seconds == pytest.approx(sum(each.decode_seconds for each in stats))
    assert totals.guard == "none"
    drafted = [chunk for chunk in chunks if chunk.spec is not None]
    assert stats[-1].drafted == sum(chunk.nodes - 1 for chunk in drafted)
    assert stats[-1].num_accepted_tokens_per_pos == tuple(
        sum(chunk.accepted >= depth for chunk in drafted) for depth in range(1, 1 + max(chunk.accepted for chunk in drafted))
    )


def test_a_pass_counts_once_with_the_rows_of_all_its_requests_and_at_once() -> None:
    recorder, at_once = TotalsRecorder(), 4

    def count() -> None:
        for _ in range(500):
            recorder.add_pass(3)

    threads = [threading.Thread(target=count) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recorder._pending_rows) <= at_once
    totals = recorder.totals(FixedPolicy(PLAIN))
    assert (totals.passes, totals.rows, totals.requests) == (500 * at_once, 1500 * at_once, {})


def test_requests_that_nobody_asks_about_do_not_pile_up(eagle: Decoder) -> None:
    before = eagle.totals.requests.get("deadline", 0)
    for _ in range(200):
        eagle.generate([5], SamplingParams(deadline=0))
    assert len(eagle._totals_recorder._pending) <= 1
    assert eagle.totals.requests["deadline"] == before + 200
