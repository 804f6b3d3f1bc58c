"""The questions: every engine gets the same token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.bench.questions import read_questions as read_files
from runtime.manifest.load import find_engine_dir, load_manifest
from runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class PeerQuestion:
    """``name``: file and number; ``tokens``: a chat with one user message, rendered by the model's template."""

    name: str
    tokens: list[int]


def read_questions(engine_dir: Path, files: Sequence[Path], limit: int) -> tuple[list[PeerQuestion], list[int]]:
    """The first turns of ``limit`` questions of every file (without files: of resps-bench's own), and the model's stop tokens. Raises
    PromptError, EngineDirError."""
    directory = find_engine_dir(engine_dir)
    manifest = load_manifest(directory, verify=False)
    text = Tokenizer(directory, manifest.tokens)
    questions = read_files(files, limit)
    chats = [[{"role": "user", "content": question.turns[0]}] for question in questions]
    rendered = [
        PeerQuestion(f"{question.set}:{question.number}", text.encode(chat)) for question, chat in zip(questions, chats, strict=True)
    ]
    return rendered, list(manifest.tokens.stop)
