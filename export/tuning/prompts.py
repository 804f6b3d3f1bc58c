"""The prompts for tuning: the built-in collection or the user's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.text_files import read_text

from ..calibration import PROMPTS
from .errors import TuningError


def read_prompts(file: Path | None) -> list[str]:
    """Read ``file``, or the built-in collection if None. Each line is plain text or a JSON object with ``prompt`` or ``turns`` (the first
    turn is used). Raises TuningError if it cannot be read."""
    path = file or PROMPTS
    try:
        lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TuningError(f"cannot read {path}: {error} — give a text file in UTF-8") from None
    return [_prompt(path, number, line) for number, line in lines]


def _prompt(path: Path, number: int, line: str) -> str:
    if not line.startswith("{"):
        return line
    try:
        entry: Any = json.loads(line)
        prompt = entry["prompt"] if "prompt" in entry else entry["turns"][0]
    except (ValueError, KeyError, IndexError, TypeError):
        prompt = None
    if not isinstance(prompt, str) or not prompt.strip():
        raise TuningError(
            f"{path}, line {number}: no prompt and no turns — write plain text or a JSON object with one of them on every line"
        )
    return prompt
