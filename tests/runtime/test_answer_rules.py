"""Parameters that change scores, ends and the number of answers: what a Decoder makes of them, with one lane and several."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy import FixedPolicy, Policy, TreeSpec
from runtime import Decoder, ParameterError, SamplingParams
from tests.support.plain_sampling import any_rules, plain_answer

PROMPT = [*range(5, 25), 7, 7, 8]
POLICIES: list[Policy | str | None] = [None, "fixed", FixedPolicy(TreeSpec(12, 4, 3))]


@pytest.fixture(scope="module", params=[1, 3], ids=["one lane", "three lanes"])
def any_lanes(echo_engine: Path, request: pytest.FixtureRequest) -> Iterator[Decoder]:
    with Decoder(echo_engine, threads=1, lanes=request.param) as decoder:
        yield decoder


def wanted(count: int) -> list[SamplingParams]:
    """Random parameters, with stop tokens and without."""
    random = np.random.default_rng(5)
    made = [any_rules(random, 96, 30) for _ in range(count)]
    return [replace(each, bad_words=(), stop_token_ids=random.integers(3, 100, 4 * (at % 2)).tolist()) for at, each in enumerate(made)]


def logits_of(decoder: Decoder, tokens: list[int]) -> np.ndarray:
    """The target's scores after ``tokens``, computed anew."""
    target = decoder.models.target
    target.cache_valid = False
    target.cache.truncate(0)
    for chunk, output in target.prefill(tokens):
        if target.length == len(tokens):
            return np.array(output.logits[-1])
        assert len(chunk)
    raise AssertionError("no tokens")


def test_the_decoder_gives_the_plain_reference_s_answer(eagle_decoder: Decoder) -> None:
    stop = eagle_decoder.manifest.tokens.stop
    for params in wanted(10):
        result = eagle_decoder.generate(PROMPT, params)
        stops = {*(() if params.ignore_eos else stop), *params.stop_token_ids}
        expected = plain_answer(lambda tokens: logits_of(eagle_decoder, tokens), PROMPT, params, stops, 30)
        assert list(result.tokens) == expected
        assert result.stop == ("eos" if expected[-1] in stops else "length")


def test_trees_and_neighbours_change_nothing(any_lanes: Decoder, eagle_decoder: Decoder) -> None:
    params = wanted(18)
    plain = [eagle_decoder.generate(PROMPT, each, policy="none") for each in params]
    with ThreadPoolExecutor(any_lanes.lanes) as pool:
        results = list(pool.map(lambda at: any_lanes.generate(PROMPT, params[at], policy=POLICIES[at % 3]), range(len(params))))
    for result, expected in zip(results, plain, strict=True):
        assert (result.tokens, result.text, result.stop) == (expected.tokens, expected.text, expected.stop)
    assert sum(result.stats.accepted for result in results) > 20


def test_log_probabilities_are_the_model_s_own(eagle_decoder: Decoder) -> None:
    params = SamplingParams(max_new_tokens=4, logprobs=1, logit_bias={50: 100}, repetition_penalty=1.5)
    result = eagle_decoder.generate(PROMPT, params)
    assert result.logprobs is not None
    for at, each in enumerate(result.logprobs):
        logits = logits_of(eagle_decoder, [*PROMPT, *result.tokens[:at]]).astype(np.float64)
        assert each.logprob == pytest.approx(logits[each.token] - np.log(np.exp(logits).sum()), abs=1e-4)


def test_min_tokens_hold_back_stop_tokens_and_stop_strings(any_lanes: Decoder) -> None:
    free = any_lanes.generate(PROMPT, SamplingParams(max_new_tokens=40))
    stop = free.tokens[3]
    early = any_lanes.generate(PROMPT, SamplingParams(max_new_tokens=40, stop_token_ids=[stop]))
    assert (early.stop, early.tokens) == ("eos", free.tokens[: free.tokens.index(stop) + 1])
    assert early.text == any_lanes.decode(early.tokens[:-1])
    late = any_lanes.generate(PROMPT, SamplingParams(max_new_tokens=40, stop_token_ids=[stop], min_tokens=20))
    assert len(late.tokens) >= 20
    assert stop not in late.tokens[:20]
    place = next(place for place in range(30) if free.text[place : place + 2].isascii())
    word = free.text[place : place + 2]
    held = any_lanes.generate(PROMPT, SamplingParams(max_new_tokens=40, stop=[word], min_tokens=25))
    assert len(held.tokens) > 25
    assert held.tokens == free.tokens[: len(held.tokens)]
    if held.stop == "stop_string":
        shown = any_lanes.decode(free.tokens[:25])
        assert held.text[: len(shown)] == shown


def test_ignore_eos_leaves_the_model_s_own_stop_tokens_out(any_lanes: Decoder) -> None:
    eos = any_lanes.manifest.tokens.stop[0]
    bias = SamplingParams(max_new_tokens=9, logit_bias={eos: 100})
    assert any_lanes.generate(PROMPT, bias).tokens == (eos,)
    ignored = any_lanes.generate(PROMPT, replace(bias, ignore_eos=True))
    assert (ignored.tokens, ignored.stop) == ((eos,) * 9, "length")
    assert any_lanes.generate(PROMPT, replace(bias, ignore_eos=True, stop_token_ids=[eos])).stop == "eos"


def test_bad_words_do_not_occur(any_lanes: Decoder) -> None:
    free = any_lanes.generate(PROMPT, SamplingParams(max_new_tokens=30))
    words = [any_lanes.decode([token]) for token in free.tokens[:12]]
    words = [word for word in words if word.strip() and word.isascii()][:4]
    assert words
    for word in words:
        spelled = any_lanes.encode(word.lstrip())
        result = any_lanes.generate(PROMPT, SamplingParams(max_new_tokens=30, bad_words=[word]))
        windows = [list(result.tokens[at : at + len(spelled)]) for at in range(30)]
        assert spelled not in windows
        if spelled == [free.tokens[0]]:
            assert result.tokens != free.tokens


def test_several_answers_read_the_prompt_once(any_lanes: Decoder) -> None:
    prompt, params = [*PROMPT * 8, 9], SamplingParams(max_new_tokens=12, temperature=1.0, seed=4, presence_penalty=0.3)
    any_lanes.forget()
    results = any_lanes.answers(prompt, 5, params)
    assert [each.tokens for each in results] == [any_lanes.generate(prompt, params.for_answer(at)).tokens for at in range(5)]
    assert len({each.tokens for each in results}) > 1
    assert results[0].stats.cached_prompt_tokens == 0
    again = 16  # tokens at most that are read again where the draft has not read them (runtime/lanes/prefix.py)
    assert all(each.stats.cached_prompt_tokens >= len(prompt) - 2 - again for each in results[1:])
    for count in (0, 129):
        with pytest.raises(ValueError, match="count"):
            any_lanes.answers(prompt, count)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"logit_bias": {10**6: 1}}, "logit_bias"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids"),
        ({"bad_words": ["a\ud800"]}, "bad_words"),
    ],
    ids=str,
)
def test_what_the_tokenizer_does_not_have_is_refused_at_the_call(eagle_decoder: Decoder, params: dict[str, Any], field: str) -> None:
    for call in (lambda each: eagle_decoder.stream(PROMPT, each), eagle_decoder.check):
        with pytest.raises(ParameterError, match=field) as refused:
            call(SamplingParams(**params))
        assert refused.value.field == field
