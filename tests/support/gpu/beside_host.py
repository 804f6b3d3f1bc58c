"""Comparisons of a device's Decoder with the host's, for tests of every GPU backend."""

from __future__ import annotations

import numpy as np

from policy import FixedPolicy, TreeSpec
from runtime import Decoder, SamplingParams
from tests.support.eagle_engines import prompt_of


def expect_one_conversation(host: Decoder, device: Decoder, tree: TreeSpec) -> None:
    """Prompts that extend, shorten and change the last one, so that the cache grows and shrinks: the device reuses its cached prefix and
    answers as the host, which starts with an empty cache each time."""
    first, policy = prompt_of(100), FixedPolicy(tree)
    for prompt, min_cached in ((first, 0), ([*first, 7, 8, 9], 98), (first[:30], 28), ([*first[:20], *first], 18), (first[1:], 0)):
        host.forget()
        expected, came = (each.generate(prompt, SamplingParams(max_new_tokens=40), policy=policy) for each in (host, device))
        assert came.tokens == expected.tokens
        assert came.stats.cached_prompt_tokens >= min_cached
        np.testing.assert_allclose(device.models.target.cache.rows(), host.models.target.cache.rows(), rtol=0, atol=1e-5)
