"""What is asked: the same token ids for every engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.manifest.load import find_engine_dir, load_manifest
from runtime.text.tokenizer import Tokenizer
from scripts.peers.errors import PeerError

OWN = ("Why is the sky blue?", "Write a Python function that reverses a list.", "Tell me a short story about a lighthouse.")


@dataclass(frozen=True)
class PeerQuestion:
    """``name``: file and line; ``tokens``: the chat with one user message, through the model's template."""

    name: str
    tokens: list[int]


def read_questions(engine_dir: Path, files: Sequence[Path], most: int) -> tuple[list[PeerQuestion], list[int]]:
    """The first turns of ``most`` questions of every file (without files the project's own three), and the model's stop tokens."""
    directory = find_engine_dir(engine_dir)
    manifest = load_manifest(directory, verify=False)
    text = Tokenizer(directory, manifest.tokens)
    asked = [(f"own:{number}", turn) for number, turn in enumerate(OWN[:most])] if not files else []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()[:most]):
            try:
                asked.append((f"{file.stem}:{number}", json.loads(line)["turns"][0]))
            except (ValueError, KeyError, IndexError, TypeError):
                raise PeerError(f"{file}, line {number + 1} is no object with turns — give JSON lines like {{'turns': ['...']}}") from None
    if not asked:
        raise PeerError("there is no question to ask — give --prompts with a line or more")
    return [PeerQuestion(name, text.encode([{"role": "user", "content": turn}])) for name, turn in asked], list(manifest.tokens.stop)
