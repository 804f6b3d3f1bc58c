"""Traces that lanes record together are those of one answer at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.tuning.replay.lanes_traces import trace_answers
from export.tuning.replay.traces import trace_answer
from runtime import Decoder, SamplingParams
from tests.support.eagle_engines import prompt_of


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.9, seed=5)], ids=["greedy", "sampled"])
def test_answers_are_traced_together_as_one_by_one(echo_engine: Path, sampling: SamplingParams) -> None:
    prompts = [prompt_of(length) for length in (5, 150, 20)]
    params = [SamplingParams(max_new_tokens=count, temperature=sampling.temperature, seed=sampling.seed) for count in (30, 7, 24)]
    with Decoder(echo_engine, threads=1, lanes=4) as several, Decoder(echo_engine, threads=1) as alone:
        answers = [stream.result().tokens for stream in [several.stream(*each) for each in zip(prompts, params, strict=True)]]
        several.forget()
        found = trace_answers(several, prompts, answers, 3, (1, 2))
        assert several.forest is not None
        assert several.forest.draft is not None
        assert all(cache.pool.free == cache.pool.count for cache in (several.forest.target.cache, several.forest.draft.cache))
        # The draft is quantized, so a row depends a little on what else is in its pass.
        for prompt, answer, traces in zip(prompts, answers, found, strict=True):
            for width in (1, 2):
                expected = trace_answer(alone, prompt, answer, 3, width)
                assert (traces[width].path == expected.path).mean() > 0.97
                np.testing.assert_array_equal(traces[width].levels, expected.levels)
                np.testing.assert_allclose(traces[width].scores, expected.scores, atol=0.05)
                np.testing.assert_allclose(traces[width].features, expected.features, atol=1e-2)
                assert traces[width].prompt_tokens == len(prompt)
        with pytest.raises(ValueError, match="several lanes"):
            trace_answers(alone, prompts, answers, 3, (1,))
        with pytest.raises(ValueError, match="too short"):
            trace_answers(several, prompts[:1], [(3,)], 3, (1,))
