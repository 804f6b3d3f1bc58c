"""Question files: each file is one set, named after the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PromptError
from ..text_files import read_text

DEFAULT_FILE = Path(__file__).with_name("mixed.jsonl")
"""A few questions of every kind, for runs without a question file. Nothing was trained or tuned on them."""


@dataclass(frozen=True)
class Question:
    """``number``: index in the file, from 0; ``turns``: user messages, asked one after another in one chat."""

    set: str
    number: int
    turns: tuple[str, ...]


def read_questions(files: Sequence[Path], limit: int) -> list[Question]:
    """At most ``limit`` questions of each file [default: DEFAULT_FILE], interleaved: the first of every file, then the second, and so on,
    so that an interrupted run has some of each. A line is a JSON object with ``turns`` or ``prompt``, or plain text. Raises PromptError."""
    sets = [_read_set(file, limit) for file in files or [DEFAULT_FILE]]
    names = [questions[0].set for questions in sets]
    for name in names:
        if names.count(name) > 1:
            raise PromptError(f"two prompt files are called {name}, which is how tables name the set — rename one")
    return sorted((question for questions in sets for question in questions), key=lambda question: question.number)


def _read_set(file: Path, limit: int) -> list[Question]:
    try:
        text = read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read {file}: {error} — give a text file in UTF-8") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise PromptError(f"{file} is empty — give a question a line")
    # All lines are parsed, so that a bad one is found whatever ``limit`` is.
    turns = [_parse_line(f"{file}, line {number}", line.strip()) for number, line in lines]
    return [Question(file.stem, number, each) for number, each in enumerate(turns[:limit])]


def _parse_line(where: str, line: str) -> tuple[str, ...]:
    if not line.startswith("{"):
        return (line,)
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where} is no JSON: {error} — a line that begins with {{ must be one object") from None
    turns = entry["turns"] if "turns" in entry else [entry.get("prompt")]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise PromptError(f'{where} asks nothing — it needs "turns", a list of texts, or "prompt", a text')
    return tuple(turns)
