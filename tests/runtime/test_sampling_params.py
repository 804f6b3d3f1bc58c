"""SamplingParams: every field is checked where the object is made, and the error names the field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime import SamplingParams

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *(("temperature", bad) for bad in (-1, 100.5, NAN, INFINITE, "hot", None, True)),
        *(("top_k", bad) for bad in (-1, 2**31, 1.5, "3", False)),
        *(("top_p", bad) for bad in (0, 1.1, -0.1, NAN, "all")),
        *(("seed", bad) for bad in (-1, 2**64, 0.5, "x", True)),
        *(("max_new_tokens", bad) for bad in (0, -5, 1.5, "many", True)),
        *(("stop", bad) for bad in ("text", [""], [3], None, 7)),
        *(("logprobs", bad) for bad in (-1, 21, 1.5, True)),
        *(("min_p", bad) for bad in (-0.1, 1.1, NAN, "x", None, True)),
        *(("typical_p", bad) for bad in (0, 1.1, NAN, "x", True)),
        *(("presence_penalty", bad) for bad in (-2.1, 2.1, NAN, INFINITE, "x", True)),
        *(("frequency_penalty", bad) for bad in (-2.1, 2.1, NAN, INFINITE, "x", True)),
        *(("repetition_penalty", bad) for bad in (0, -1, 100.1, NAN, INFINITE, "x", True)),
        *(
            ("logit_bias", bad)
            for bad in ({3: 101}, {3: NAN}, {3: "x"}, {-1: 1}, {2**31: 1}, {"3": 1}, {True: 1}, [3], [(3, 1, 2)], 5, "x")
        ),
        ("logit_bias", dict.fromkeys(range(1025), 1.0)),
        *(("min_tokens", bad) for bad in (-1, 513, 2**31, 1.5, "x", True, None)),
        *(("ignore_eos", bad) for bad in (1, "yes", None)),
        *(("rounds", bad) for bad in (1, "yes", None)),
        *(("stop_token_ids", bad) for bad in ([-1], [2**31], [1.5], ["3"], [True], 7, "7", None, [1] * 1025)),
        *(("bad_words", bad) for bad in ("word", [""], [" "], [3], None, 7, ["x"] * 1025)),
        *(("deadline", bad) for bad in (-1, -0.1, NAN, "soon", True)),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(field: str, bad: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=field) as caught:
        SamplingParams(**{field: bad})
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    params = SamplingParams(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.uint64(7), deadline=np.float64(2))
    assert (params.temperature, params.top_k, params.seed, params.deadline) == (0.5, 3, 7, 2)


@pytest.mark.parametrize(("temperature", "greedy"), [(0, True), (0.99e-5, True), (1e-5, False), (1, False)])
def test_tiny_temperatures_are_greedy(temperature: float, greedy: bool) -> None:
    assert SamplingParams(temperature=temperature).greedy is greedy


def test_a_list_of_stop_strings_is_copied() -> None:
    stops = ["a"]
    params = SamplingParams(stop=stops)
    stops.append("b")
    assert params.stop == ("a",)
    assert hash(params) == hash(SamplingParams(stop=("a",)))


def test_tokens_and_words_are_copied_and_can_be_hashed() -> None:
    bias, tokens, words = {3: 1, 4: -2}, [5], ["bad"]
    params = SamplingParams(logit_bias=bias, stop_token_ids=tokens, bad_words=words)
    bias[5] = 1
    tokens.append(6)
    words.append("worse")
    assert (params.biases, params.stop_token_ids, params.bad_words) == ({3: 1.0, 4: -2.0}, (5,), ("bad",))
    assert hash(params) == hash(replace(params))
    assert SamplingParams(logit_bias=[(3, 1), (4, -2)]).logit_bias == params.logit_bias


def test_each_answer_has_a_seed_of_its_own() -> None:
    params = SamplingParams(temperature=1.0, seed=2**64 - 1)
    assert [params.for_answer(number).seed for number in range(3)] == [2**64 - 1, 0, 1]
    assert SamplingParams(temperature=1.0).for_answer(2).seed is None
