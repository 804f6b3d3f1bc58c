"""What long work says on standard error, in a pipe and on a terminal."""

from __future__ import annotations

import sys

import pytest

from runtime.console import QUIET_SECONDS, Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_quick_work_in_a_pipe_says_when_it_begins_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(Clock())
    for done in range(1, 31):
        progress("target", done, 30)
    for done in range(4):
        progress("check", done, 3)
    assert capsys.readouterr().err.splitlines() == ["target: begins", "target: done", "check: done"]


def test_long_work_in_a_pipe_says_every_few_seconds_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress(clock)
    for done in range(101):
        clock.now = 10.0 * done
        progress("target", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "target: 1 %, 16 min left"
    assert lines[49] == "target: 50 %, 8 min left"
    assert lines[-2:] == ["target: 99 %, 10 s left", "target: done"]
    assert len(lines) == 100


def test_lines_in_a_pipe_are_some_seconds_apart(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress(clock)
    for done in range(1, 1001):
        clock.now += QUIET_SECONDS / 10
        progress("target", done, 1000)
    assert 95 <= len(capsys.readouterr().err.splitlines()) <= 102


def test_a_terminal_has_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    clock = Clock()
    progress = Progress(clock)
    for done in range(1, 11):
        clock.now += 60.0
        progress("target", done, 10)
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert written.endswith("target: 10/10\n")
    assert "target: 5/10, 5 min left" in written


def test_time_left_counts_what_was_done_since_the_stage_was_first_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a training that goes on; a note stands before it."""
    clock = Clock()
    progress = Progress(clock)
    for done in range(800, 1001, 100):
        clock.now += 60.0
        progress("training", done, 1000, f"loss {done}")
    assert capsys.readouterr().err.splitlines() == ["training: begins", "training: 90 %, loss 900, 60 s left", "training: done"]
