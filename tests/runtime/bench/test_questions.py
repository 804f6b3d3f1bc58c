"""Question files of resps-bench: formats, order, errors, and the bundled files."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.bench.questions import DEFAULT_FILE, read_questions
from runtime.errors import PromptError


def test_files_of_every_form_take_turns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\ufeff{"turns": ["b", "c"], "category": "x"}\r\n\n{"prompt": "d"}\nplain {text}\n', encoding="utf-8")
    (tmp_path / "b.txt").write_text("one\u2028line\ntwo")
    found = read_questions([tmp_path / "a.jsonl", tmp_path / "b.txt"], 3)
    assert [(each.set, each.number) for each in found] == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)]
    assert [each.turns for each in found if each.set == "a"] == [("b", "c"), ("d",), ("plain {text}",)]
    assert found[1].turns == ("one\u2028line",)
    assert len(read_questions([tmp_path / "a.jsonl"], 1)) == 1
    assert {each.set for each in read_questions([], 4)} == {DEFAULT_FILE.stem}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("fine\n{broken\n", "line 2 is no JSON"),
        ("fine\n\n{}\n", "line 3 asks nothing"),
        ('{"turns": []}', "line 1 asks nothing"),
        ('{"turns": "text"}', "asks nothing"),
        ('{"turns": ["a", 3]}', "asks nothing"),
        ('{"turns": ["a", " "]}', "asks nothing"),
        ('{"prompt": null}', "asks nothing"),
        ("[" * 10, None),  # text like any other
        ('{"a":' * 100_000, "line 1 is no JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_lines_are_named(tmp_path: Path, text: str, says: str | None) -> None:
    (tmp_path / "p").write_text(text)
    if says is None:
        assert len(read_questions([tmp_path / "p"], 5)) == 1
        return
    with pytest.raises(PromptError, match=says) as caught:
        read_questions([tmp_path / "p"], 1)
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"\xff\xfe")
    with pytest.raises(PromptError, match="UTF-8"):
        read_questions([tmp_path / "p"], 1)
    (tmp_path / "x").mkdir()
    for file in (tmp_path / "a.txt", tmp_path / "x" / "a.jsonl"):
        file.write_text("a")
    with pytest.raises(PromptError, match="two prompt files are called a"):
        read_questions([tmp_path / "a.txt", tmp_path / "x" / "a.jsonl"], 1)


def test_files_that_come_along_are_plain_text() -> None:
    """Names of special tokens in a question would end or split its chat."""
    files = sorted(DEFAULT_FILE.parent.glob("*.jsonl"))
    assert [file.name for file in files] == ["mixed.jsonl", "unseen.jsonl"]
    for question in read_questions(files, 100):
        for text in question.turns:
            assert "<|" not in text
            assert "\ufffd" not in text
