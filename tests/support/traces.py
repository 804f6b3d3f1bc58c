"""Traces of a tiny engine's answers."""

from __future__ import annotations

import dataclasses

from export.tuning.replay.traces import Trace, trace_answer
from runtime import Decoder, SamplingParams
from tests.support.eagle_engines import prompt_of


def trace_prompt(decoder: Decoder, sampling: SamplingParams, length: int = 20, count: int = 90) -> dict[int, Trace]:
    """Traces by width of the answer, of ``count`` tokens, to a prompt of ``length`` tokens."""
    prompt = prompt_of(length)
    answer = decoder.generate(prompt, dataclasses.replace(sampling, max_new_tokens=count)).tokens
    return {width: trace_answer(decoder, prompt, answer, 4, width) for width in (1, 2, 3)}
