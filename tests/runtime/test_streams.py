"""What commands read and write: encodings, byte order marks, line ends, closed streams and readers that leave."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from export.tuning.prompts import read_prompts
from runtime.bench.questions import read_questions
from runtime.cli import command
from runtime.console import run_command
from runtime.standard_streams import print_json
from runtime.text_files import read_text

PROMPT = "the cat sat on the"


def answer(engine: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: str, stdin: bytes = b"") -> str:
    """What resps-run writes to a standard output in ``encoding``."""
    out = io.BytesIO()
    stream = io.TextIOWrapper(out, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding=encoding))
    assert run_command(command, "resps-run", ["--engine-dir", str(engine), "--max-new-tokens", "60", *arguments]) == 0
    monkeypatch.undo()
    stream.detach()
    return out.getvalue().decode(encoding)


SAMPLED = ("--temperature", "1.5", "--seed", "2")  # its answer has characters that few encodings have


def test_a_stream_that_lacks_characters_shows_question_marks(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = answer(tiny_engine, monkeypatch, "utf-8", *SAMPLED, "--chat", PROMPT)
    assert not whole.isascii()
    for encoding, way in (("cp1252", []), ("cp1252", ["--no-stream"]), ("ascii", []), ("ascii", ["--no-stream"])):
        expected = whole.encode(encoding, "replace").decode(encoding)
        assert answer(tiny_engine, monkeypatch, encoding, *SAMPLED, "--chat", *way, PROMPT) == expected
    assert json.loads(answer(tiny_engine, monkeypatch, "cp1252", *SAMPLED, "--chat", "--json", PROMPT))["text"] + "\n" == whole


def test_json_keeps_every_character_and_the_stream_s_own_handler_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, expected in (("utf-8", '"é\u4f60"'), ("latin-1", '"\\u00e9\\u4f60"')):
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding, errors="xmlcharrefreplace"))
        write = click.Command("any", callback=lambda: (print_json("é\u4f60"), click.echo("\u4f60")))
        assert run_command(write, "any", []) == 0
        assert out.getvalue().decode(encoding).splitlines() == [expected, "\u4f60" if encoding == "utf-8" else "&#20320;"]


def test_marks_and_line_ends_are_no_part_of_a_prompt(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = answer(tiny_engine, monkeypatch, "cp1252", "the cat\nsat")
    for stdin in (b"\xef\xbb\xbfthe cat\nsat", b"the cat\r\nsat\r\n", b"\xef\xbb\xbfthe cat\r\nsat\r\n"):
        assert answer(tiny_engine, monkeypatch, "cp1252", stdin=stdin) == given


def lines_of_questions(file: Path) -> Sequence[str]:
    return [turn for question in read_questions([file], 9) for turn in question.turns]


@pytest.mark.parametrize("read", [lines_of_questions, read_prompts], ids=["resps-bench", "resps-tune"])
def test_nor_of_a_file_of_prompts(tmp_path: Path, read: Callable[[Path], Sequence[str]]) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes('\ufeff{"prompt": "one\u2028two"}\r\n\r\nthree\r\n{"turns": ["four"]}'.encode())
    assert list(read(file)) == ["one\u2028two", "three", "four"]
    file.write_bytes(b"\r\n\r\n{broken")
    with pytest.raises(Exception, match=r"line 3\b"):
        read(file)


def test_text_is_utf_8(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfa\r\n\r\nb\rc\xef\xbb\xbf")
    assert read_text(tmp_path / "text") == "a\n\nb\rc\ufeff"


def process(body: str, closed: str = "", **streams: Any) -> subprocess.CompletedProcess[bytes]:
    """A command whose function has this ``body``, in a process; ``closed``: redirections of the shell, such as ">&-"."""
    program = f"""
import logging, os, sys, click
from runtime.console import progress, run_command
from runtime.standard_streams import say
def callback():
    {body}
sys.exit(run_command(click.Command("any", callback=callback), "any", []))
"""
    line = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program]
    return subprocess.run(line, check=False, timeout=60, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams})


OPENS = "click.echo('answer'); say('said'); progress('stage', 1, 1); assert os.open(os.devnull, os.O_RDONLY) > 2"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_quiet_and_their_numbers_are_not_used(closed: str) -> None:
    done = process(OPENS, closed)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert done.stdout == (b"" if " >&-" in f" {closed}" else b"answer\n")
    assert done.stderr == (b"" if "2>&-" in closed else b"said\nstage: done\n")


@contextmanager
def left_by_its_reader() -> Iterator[int]:
    """The writing end of a pipe whose reading end is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_work_goes_on_when_nobody_reads_its_progress() -> None:
    with left_by_its_reader() as pipe:
        done = process("say('said'); logging.warning('warned'); progress('stage', 1, 1); click.echo('ready')", stderr=pipe)
    assert (done.returncode, done.stdout) == (0, b"ready\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_and_a_lost_connection_are_failures() -> None:
    with open("/dev/full", "w") as full:
        done = process("click.echo('answer')", stdout=full)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"No space left" in done.stderr
    done = process("raise BrokenPipeError(32, 'Broken pipe')")  # of a socket, say
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    with left_by_its_reader() as pipe:
        done = process("[(sys.stdout.write('x'), sys.stdout.flush()) for _ in range(2)]", stdout=pipe)
    assert (done.returncode, done.stderr) == (0, b"")
