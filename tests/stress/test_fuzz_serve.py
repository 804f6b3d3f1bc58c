"""A short run of tests/stress/fuzz_serve.py."""

from __future__ import annotations

from tests.stress.fuzz_serve import fuzz


def test_no_request_breaks_the_server() -> None:
    came = fuzz(400)
    assert came["answered"] > 10
    assert came["400"] > 10
    assert came["left"] > 10
