"""Faults that went through resps-export are named by resps-bench --doctor. tests/stress/check_doctor.py plants all of them, in every
precision."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.bench.cli import SICK
from tests.support.doctor_faults import LAYERS, SHIFTED
from tests.support.doctor_pairs import CASES, examined_case, findings

pytestmark = pytest.mark.real


@pytest.mark.parametrize(("says", "precision"), [(LAYERS, "fp32"), (SHIFTED, "int8")])
def test_a_fault_that_was_exported_is_named(says: str, precision: str, tmp_path: Path) -> None:
    ended = examined_case(CASES[says], tmp_path, precision, "--questions", "5")
    assert ended.returncode == SICK, ended.stderr
    assert says in findings(ended)[0]
