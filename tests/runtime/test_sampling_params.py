"""SamplingParams: every field is checked where the object is made, and the error names the field."""

from __future__ import annotations

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
