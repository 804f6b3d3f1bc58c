"""A short run of tests/stress/fuzz_tools.py."""

from __future__ import annotations

from tests.stress.fuzz_tools import fuzz


def test_no_request_breaks_the_server() -> None:
    came = fuzz(560)
    assert came["called"] > 10
    assert came["answered"] > 10
    assert came["400"] > 10
