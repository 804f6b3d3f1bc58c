"""What a device must do as the host does, on any of them."""

from __future__ import annotations

import numpy as np

from policy import FixedPolicy, TreeSpec
from runtime import Decoder, SamplingParams
from tests.support.eagle_engines import prompt_of


def expect_one_conversation(host: Decoder, device: Decoder, tree: TreeSpec) -> None:
    """Longer, shorter and other prompts, heads moving apart and together: the device goes on from what its cache holds, and answers as the
    host does, which begins anew each time."""
    first, policy = prompt_of(100), FixedPolicy(tree)
    for prompt, least in ((first, 0), ([*first, 7, 8, 9], 98), (first[:30], 28), ([*first[:20], *first], 18), (first[1:], 0)):
        host.forget()
        expected, came = (each.generate(prompt, SamplingParams(max_new_tokens=40), policy=policy) for each in (host, device))
        assert came.tokens == expected.tokens
        assert came.stats.cached_prompt_tokens >= least
        np.testing.assert_allclose(device._target.cache.rows(), host._target.cache.rows(), rtol=0, atol=1e-5)
