"""The requests with which a Decoder warms up, so that the first real one is as fast as later ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from policy import FixedPolicy, TreeSpec

from .decoding.gumbel import MakeSampler
from .manifest.schema import Limits
from .request import Request
from .sampling_params import SamplingParams

WARM_UP_TOKENS = 8


def warm_up_requests(
    limits: Limits, vocab: int, trees: Sequence[TreeSpec], lanes: int, make_sampler: MakeSampler
) -> Iterator[list[Request]]:
    """Groups of requests that run at the same time: one with two chunks of prompt, then short ones with each of ``trees``."""
    params = SamplingParams(max_new_tokens=WARM_UP_TOKENS)
    two_chunks = [1 % vocab] * min(2 * limits.prefill_rows, max(1, limits.context - WARM_UP_TOKENS))
    for prompt, spec, count in ((two_chunks, trees[0], 1), *((two_chunks[:8], spec, lanes) for spec in trees)):
        yield [Request(prompt, params, make_sampler(params), FixedPolicy(spec), frozenset()) for _ in range(count)]
