"""The demo model with several lanes on the GPU: its answers compared with those of one lane, speed, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from policy import PLAIN, FixedPolicy
from runtime import Decoder, SamplingParams
from runtime.backends.cuda.driver import Cuda
from tests.support.prompts import PROMPTS

from .demo import export_demo

LANES, NEW_TOKENS, TIMES = 8, 128, 3
SAMPLED = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0.8, seed=1)
GREEDY = SamplingParams(max_new_tokens=NEW_TOKENS)


def lanes(work: Path, weights: str | None) -> dict[str, Any]:
    """One lane and 1 to LANES clients of LANES lanes, TensorRT in fp16. ``weights``: the model's GGUF."""
    return measure_lanes(export_demo(work, weights, "tensorrt-fp16-lanes", "fp16", "--lanes", str(LANES)), LANES)


def measure_lanes(directory: Path, most: int) -> dict[str, Any]:
    """The report for an engine directory with ``most`` lanes."""
    cuda = Cuda()  # creates the CUDA context first, so that only the Decoder's memory is counted
    with Decoder(directory) as one:
        expected = _answers(one, 1, GREEDY)
        rate = statistics.median(_rates(one, 1))
    before, started = cuda.free_memory(), time.perf_counter()
    with Decoder(directory, lanes=most) as several:
        loaded, during = time.perf_counter() - started, cuda.free_memory()
        plain = _answers(several, 1, GREEDY, plain=True)
        together, sampled = _answers(several, most, GREEDY), _answers(several, most, SAMPLED)
        report = {
            "load_seconds": round(loaded, 1),
            "memory_mib": (before - during) >> 20,
            "answers_equal_to_one_lane": _equal(together, expected),
            "answers_equal_to_plain_alone": _equal(together, plain),
            "sampled_answers_equal_to_alone": _equal(sampled, _answers(several, 1, SAMPLED, plain=True)),
            "tokens_per_second_to_one_lane": {
                clients: round(statistics.median(_rates(several, clients)) / rate, 2)
                for clients in sorted({1, 2, 4, most})
                if clients <= most
            },
        }
    cuda.close()
    return report


def _answers(decoder: Decoder, clients: int, params: SamplingParams, plain: bool = False) -> list[tuple[int, ...]]:
    policy = FixedPolicy(PLAIN) if plain else None
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda prompt: decoder.generate(prompt, params, policy=policy).tokens, PROMPTS))


def _rates(decoder: Decoder, clients: int) -> list[float]:
    """Tokens per second of all prompts, several times."""
    rates = []
    for _ in range(TIMES):
        started = time.perf_counter()
        tokens = sum(map(len, _answers(decoder, clients, GREEDY)))
        rates.append(tokens / (time.perf_counter() - started))
    return rates


def _equal(answers: Sequence[tuple[int, ...]], expected: Sequence[tuple[int, ...]]) -> str:
    return f"{sum(a == b for a, b in zip(answers, expected, strict=True))} of {len(expected)}"
