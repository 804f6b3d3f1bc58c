"""Which questions a run with several clients asks, as token ids."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...decoder import Decoder
from ...errors import BenchError, PromptError
from ..measure import prompt_of
from ..questions import read_questions
from ..record import Skipped


@dataclass(frozen=True)
class LoadQuestion:
    """The first turn of a question. ``number``: index in the file ``set``; ``tokens``: the whole prompt."""

    set: str
    number: int
    tokens: tuple[int, ...]


def choose(files: Sequence[Path], limit: int, max_tokens: int | None, decoder: Decoder) -> tuple[list[LoadQuestion], list[Skipped], int]:
    """The first ``limit`` questions of each file that fit, interleaved; those that exceed the context; and how many prompts were dropped
    before the limit was reached because they have more than ``max_tokens`` tokens or repeat another one. Raises PromptError, BenchError."""
    chosen: list[LoadQuestion] = []
    skipped: list[Skipped] = []
    taken: Counter[str] = Counter()
    seen: set[tuple[int, ...]] = set()
    dropped = 0
    for question in read_questions(files, sys.maxsize):
        if taken[question.set] >= limit:
            continue
        try:
            tokens = tuple(decoder.encode(prompt_of(decoder, [{"role": "user", "content": question.turns[0]}])))
        except PromptError as error:
            skipped.append(Skipped(question.set, question.number, 0, str(error)))
            continue
        if tokens in seen or (max_tokens is not None and len(tokens) > max_tokens):
            dropped += 1
            continue
        seen.add(tokens)
        taken[question.set] += 1
        chosen.append(LoadQuestion(question.set, question.number, tokens))
    if not chosen:
        why = f"those that fit have more than {max_tokens} tokens — raise --max-prompt-tokens" if dropped else skipped[0].reason
        raise BenchError(f"no question can be asked: {why}")
    return chosen, skipped, dropped
