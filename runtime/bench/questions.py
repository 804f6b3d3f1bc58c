"""Question files: one set a file, named after it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PromptError

OWN = Path(__file__).with_name("mixed.jsonl")
"""Asked when no file is given: a few of all sorts, used for nothing but measuring."""


@dataclass(frozen=True)
class Question:
    """``number``: its place in the file, from 0; ``turns``: user messages, asked one after the other in one chat."""

    set: str
    number: int
    turns: tuple[str, ...]


def read_questions(files: Sequence[Path], most: int) -> list[Question]:
    """At most ``most`` questions of each file [default: OWN], in turns: the first of every file, then the second, and so on, so that a run
    that is cut short has some of each. Lines are JSON objects with ``turns`` or ``prompt``, or plain text. Raises PromptError."""
    sets = [_of_file(file, most) for file in files or [OWN]]
    names = [questions[0].set for questions in sets]
    for name in names:
        if names.count(name) > 1:
            raise PromptError(f"two prompt files are called {name}, which is how tables name the set — rename one")
    return sorted((question for questions in sets for question in questions), key=lambda question: question.number)


def _of_file(file: Path, most: int) -> list[Question]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read {file}: {error} — give a text file in UTF-8") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise PromptError(f"{file} is empty — give a question a line")
    # All of it is read, so that a bad line is found whatever ``most`` is.
    asked = [_turns(f"{file}, line {number}", line.strip()) for number, line in lines]
    return [Question(file.stem, number, turns) for number, turns in enumerate(asked[:most])]


def _turns(where: str, line: str) -> tuple[str, ...]:
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
