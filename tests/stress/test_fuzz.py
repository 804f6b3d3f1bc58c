"""A short run of tests/stress/fuzz.py; the recorded one has 100,000 cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stress.fuzz import run, targets

NAMES = ("manifest", "decoder", "prompt", "stop strings", "tree shapes", "gguf", "safetensors", "request")


@pytest.mark.parametrize("name", NAMES)
def test_untrusted_input_ends_in_a_result_or_an_expected_error(tiny_engine: Path, name: str) -> None:
    with targets(tiny_engine) as found:
        assert [target.name for target in found] == list(NAMES)
        (target,) = (each for each in found if each.name == name)
        cases = max(6, int(1500 * target.share))
        ended = run(target, cases, first_seed=len(name))
    assert sum(ended.values()) >= cases
