"""Comparisons of a device's Decoder with the host's, for tests of every GPU backend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from policy import FixedPolicy, TreeSpec
from runtime import Constraint, Decoder, SamplingParams
from runtime.backends.base import DeviceOutputs
from tests.support.eagle_engines import prompt_of
from tests.support.plain_sampling import any_rules


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


def expect_ruled_answers(host: Decoder, device: Decoder, outputs: type[DeviceOutputs], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters that the sample graph does not know: the device answers as the host, from scores that are copied for such requests only.
    ``outputs``: the class of the device's outputs."""
    random, copied, row = np.random.default_rng(7), list[int](), outputs.row

    def counted(self: DeviceOutputs, name: str, at: int) -> np.ndarray:
        copied.append(at)
        return row(self, name, at)

    monkeypatch.setattr(outputs, "row", counted)
    for at in range(9):
        params, tree = replace(any_rules(random, 96, 25), bad_words=()), (TreeSpec(1, 0, 0), TreeSpec(5, 3, 2), TreeSpec(16, 4, 4))[at % 3]
        if at % 4 == 3:
            params = replace(params, constraint=Constraint.regex("[a-z ]{4,60}"))
        draws = params.changes_scores or (not params.greedy and (params.min_p > 0 or params.typical_p < 1))
        expected, came = (each.generate(prompt_of(20 + at), params, policy=FixedPolicy(tree)) for each in (host, device))
        assert came.tokens == expected.tokens
        assert (len(copied) >= len(came.tokens)) if draws else not copied
        copied.clear()
