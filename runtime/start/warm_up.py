"""The requests with which a Decoder warms up, so that the first real one is as fast as later ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from policy import FixedPolicy, TreeSpec

from ..decoding.gumbel import MakeSampler
from ..errors import PromptError
from ..manifest.schema import Limits, Manifest
from ..request import Request
from ..sampling_params import SamplingParams
from ..text.tokenizer import Tokenizer

WARM_UP_TOKENS = 8


def warm_up_template(manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Render a chat, so that the template is compiled."""
    if manifest.tokens.chats:
        with suppress(PromptError):  # a template may want a system turn, or tools
            tokenizer.encode([{"role": "user", "content": "Say something."}])


def warm_up_requests(
    limits: Limits, vocab: int, trees: Sequence[TreeSpec], lanes: int, make_sampler: MakeSampler
) -> Iterator[list[Request]]:
    """Groups of requests that run at the same time: one with two chunks of prompt, then short ones with each of ``trees``."""
    params = SamplingParams(max_new_tokens=WARM_UP_TOKENS)
    two_chunks = [1 % vocab] * min(2 * limits.prefill_rows, max(1, limits.context - WARM_UP_TOKENS))
    for prompt, spec, count in ((two_chunks, trees[0], 1), *((two_chunks[:8], spec, lanes) for spec in trees)):
        yield [Request(prompt, params, make_sampler(params), FixedPolicy(spec), frozenset()) for _ in range(count)]
