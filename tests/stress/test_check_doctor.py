"""What tests/stress/check_doctor.py counts."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import pytest

from runtime.bench.cli import SICK
from tests.stress import check_doctor
from tests.support.doctor_faults import LAYERS, SHIFTED


def test_a_fault_counts_as_named_if_it_is_the_first_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"the {SHIFTED}: guess 1 — export again", f"{LAYERS}: guess 1 — export again"]
    said = iter([(SICK, lines[:1]), (SICK, lines), (0, ["nothing found"]), (1, [])])

    def examined_case(*_: object) -> CompletedProcess[str]:
        code, printed = next(said)
        return CompletedProcess([], code, "\n".join(["smollm2-135m in int8", *printed]))

    monkeypatch.setattr(check_doctor, "examined_case", examined_case)
    assert check_doctor.unnamed("int8", [SHIFTED, LAYERS, LAYERS, LAYERS], 1) == 3
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split(" (")[0] for line in shown] == ["int8, named", *["int8, NOT NAMED"] * 3, "int8"]


def test_every_word_about_a_healthy_pair_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, codes = list[str](), iter([0, SICK, 1])

    def examined(engine: Path, option: str, file: str) -> CompletedProcess[str]:
        asked.extend(Path(file).read_text().splitlines())
        return CompletedProcess([], next(codes), "nothing found")

    monkeypatch.setattr(check_doctor, "exported", lambda *_: tmp_path)
    monkeypatch.setattr(check_doctor, "examined", examined)
    assert check_doctor.alarms("int8", 3) == 2
    assert len(set(asked)) == 3 * check_doctor.SIZE
