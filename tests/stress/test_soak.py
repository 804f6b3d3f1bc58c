"""A short run of tests/stress/soak.py; the recorded one has 2,000 requests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.stress.soak import KINDS, soak


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mixed_requests_over_two_forks(tiny_engine: Path) -> None:
    report = soak(tiny_engine, requests=4 * len(KINDS), questions=2)
    assert report["wrong"] == []
    assert set(report["kinds"]) == set(KINDS)
    assert sum(report["ends"].values()) == 4 * len(KINDS)
    assert report["cache_length_at_the_end"] == [3, 3]
    assert report["threads"]["after the requests"] <= report["threads"]["after loading"]
    assert report["threads"]["python, after closing"] == report["threads"]["python, before"]
