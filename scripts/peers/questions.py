"""The questions: every engine gets the same token ids."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.bench.questions import read_questions as read_files
from runtime.errors import BenchError
from runtime.manifest.load import find_engine_dir, load_manifest
from runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class PeerQuestion:
    """``name``: file and number; ``tokens``: a chat with one user message, rendered by the model's template."""

    name: str
    tokens: list[int]


def read_questions(
    engine_dir: Path, files: Sequence[Path], limit: int, max_tokens: int | None = None
) -> tuple[list[PeerQuestion], list[int]]:
    """The first turns of ``limit`` questions of every file (without files: of resps-bench's own) with at most ``max_tokens`` tokens, and
    the model's stop tokens. Raises PromptError, EngineDirError, BenchError."""
    directory = find_engine_dir(engine_dir)
    manifest = load_manifest(directory, verify=False)
    text = Tokenizer(directory, manifest.tokens)
    rendered: list[PeerQuestion] = []
    taken: Counter[str] = Counter()
    for question in read_files(files, limit if max_tokens is None else sys.maxsize):
        tokens = text.encode([{"role": "user", "content": question.turns[0]}])
        if taken[question.set] < limit and (max_tokens is None or len(tokens) <= max_tokens):
            taken[question.set] += 1
            rendered.append(PeerQuestion(f"{question.set}:{question.number}", tokens))
    if not rendered:
        raise BenchError(f"no question has at most {max_tokens} tokens — raise --max-prompt-tokens")
    return rendered, list(manifest.tokens.stop)
