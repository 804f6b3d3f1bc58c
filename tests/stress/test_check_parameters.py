"""A short run of tests/stress/check_parameters.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stress import check_parameters


def test_random_parameters_change_no_token(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_parameters, "PROMPTS", ("the cat sat", "a dog and the cat"))
    came = check_parameters.check(tiny_engine, lanes=3, tokens=400, seed=1, threads=1)
    assert (came["differ"], came["invalid"]) == (0, 0)
    assert came["constrained"]
