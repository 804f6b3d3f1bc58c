"""Training data: conversations as token ids. What the target computes at each token is computed again while the draft is trained."""

from __future__ import annotations

import json
import random
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runtime.text_files import read_text

from ..errors import TrainingError
from .segments import ANSWER, PROMPT, TEMPLATE, TemplateTokens

SHARD_TOKENS = 50_000
HELD_OUT = 50  # one of so many conversations is held out


@dataclass(frozen=True)
class Conversation:
    """A conversation of n tokens.

    tokens: int32 [n]. kinds: uint8 [n], TEMPLATE, PROMPT or ANSWER. text: what kind of text it is. writer: path of the files it was
    read from, without their number.
    """

    tokens: np.ndarray
    kinds: np.ndarray
    text: str
    writer: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, longest: int) -> Conversation:
        """Its beginning, at most ``longest`` tokens."""
        return self if len(self) <= longest else Conversation(self.tokens[:longest], self.kinds[:longest], self.text, self.writer)


class ShardWriter:
    """Collects conversations and writes a file for every SHARD_TOKENS tokens. Files appear under their names only when complete.

    Raises TrainingError if ``stem`` was used before: the same seed would give the same conversations again.
    """

    def __init__(self, directory: Path, stem: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.glob(f"{stem}-*.npz")):
            raise TrainingError(f"{directory} has shards {stem}-* already — choose another --seed, or remove them first")
        self.directory, self.stem = directory, stem
        self.written = 0
        self._pending: list[Conversation] = []
        self._shards = 0

    def add(self, conversation: Conversation) -> None:
        """Write a shard if this conversation completes it."""
        self._pending.append(conversation)
        self.written += len(conversation)
        if sum(map(len, self._pending)) >= SHARD_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write the conversations that are in no shard yet."""
        if not self._pending:
            return
        name = f"{self.stem}-{self._shards:05d}.npz"
        partial = self.directory / f".{name}.partial"
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                tokens=np.concatenate([each.tokens for each in self._pending]),
                kinds=np.concatenate([each.kinds for each in self._pending]),
                lengths=np.array([len(each) for each in self._pending], np.int32),
                texts=np.array([each.text for each in self._pending]),
            )
        partial.replace(self.directory / name)
        self._pending, self._shards = [], self._shards + 1


def read_corpus(sources: Sequence[Path], vocab: int, lines: Callable[[Path], list[Conversation]]) -> list[Conversation]:
    """Every conversation of ``sources``: files that `words` wrote, directories of them, and JSON lines, which ``lines`` reads.

    Raises TrainingError if a file holds something else, or tokens that a target with ``vocab`` tokens does not have."""
    found = []
    for source in sources:
        for file in sorted(source.glob("*.npz")) if source.is_dir() else [source]:
            read = lines(file) if file.suffix == ".jsonl" else read_shard(file)
            if any(len(each) and int(each.tokens.max()) >= vocab for each in read):
                raise TrainingError(f"{file} has tokens that this target does not have — give data that this target wrote")
            found += read
    return found


def read_shard(file: Path) -> list[Conversation]:
    """The conversations of a file: arrays ``tokens`` and ``kinds`` [n], ``lengths`` [conversations], and perhaps ``texts``, without which
    the file's name is the kind of text. Raises TrainingError if it holds something else."""
    try:
        with file.open("rb") as raw, np.load(raw, allow_pickle=False) as shard:
            tokens, kinds, lengths = (np.asarray(shard[name], kind) for name, kind in _FIELDS.items())
            texts = [str(each) for each in shard["texts"]] if "texts" in shard else [file.stem] * len(lengths)
        if not len(tokens) == len(kinds) == lengths.sum() or len(texts) != len(lengths):
            raise ValueError("its arrays do not fit together")
    except (EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{file} holds no conversations ({error}) — give a file or directory of resps-train words") from None
    ends, writer = np.concatenate([[0], np.cumsum(lengths)]).tolist(), re.sub(r"-\d+$", "", str(file.resolve().with_suffix("")))
    return [
        Conversation(tokens[start:stop], kinds[start:stop], text, writer) for (start, stop), text in zip(pairwise(ends), texts, strict=True)
    ]


_FIELDS = {"tokens": np.int32, "kinds": np.uint8, "lengths": np.int64}


def read_lines(file: Path, encode: Callable[[str], list[int]], template: TemplateTokens) -> list[Conversation]:
    """Conversations of JSON lines with ``prompt``, ``answer`` and perhaps ``finished``: false for an answer that was cut.

    Raises TrainingError for a malformed file."""
    found = []
    for number, line in text_lines(file):
        try:
            each = json.loads(line)
            prompt, answer = encode(each["prompt"]), encode(each["answer"])
            end = [template.end] if each.get("finished", True) else []
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{file} line {number} has no prompt and answer ({error!r}) — give JSON lines with both") from None
        parts = ((TEMPLATE, template.before_user), (PROMPT, prompt), (TEMPLATE, template.after_user), (ANSWER, answer + end))
        tokens = np.concatenate([np.array(part, np.int32) for _, part in parts])
        kinds = np.repeat(np.array([kind for kind, _ in parts], np.uint8), [len(part) for _, part in parts])
        found.append(Conversation(tokens, kinds, file.stem, str(file.resolve())))
    return found


def text_lines(file: Path) -> list[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers. Raises TrainingError if it is not UTF-8 text."""
    try:
        return [(number, line) for number, line in enumerate(read_text(file).split("\n"), 1) if line.strip()]
    except UnicodeDecodeError as error:
        raise TrainingError(f"{file} is not UTF-8 text (byte {error.start}) — convert it first") from None


def epoch(conversations: Sequence[Conversation], weights: Mapping[str, float], choice: random.Random) -> list[Conversation]:
    """The conversations of an epoch: each as often as its kind of text has weight [default: 1], fractions by chance."""
    found = []
    for each in conversations:
        whole, rest = divmod(weights.get(each.text, 1.0), 1)
        found += [each] * (int(whole) + (choice.random() < rest))
    return found


def batches(conversations: Sequence[Conversation], tokens: int, shortest: int, choice: random.Random) -> Iterator[list[Conversation]]:
    """Groups of similar length with at most ``tokens`` tokens, padding included, in random order. Conversations of fewer than ``shortest``
    tokens are left out; what is behind the first ``tokens`` tokens of one is cut off."""
    groups: list[list[Conversation]] = []
    for each in sorted(
        (each.cut(tokens) for each in conversations if len(each) >= shortest), key=lambda each: (len(each), choice.random())
    ):
        if not groups or len(each) * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(each)
    choice.shuffle(groups)
    yield from groups


def split(conversations: Sequence[Conversation]) -> tuple[list[Conversation], list[Conversation]]:
    """(training, held out). Counted separately for every writer, so that the shards of another one, added later, change nothing."""
    counts: Counter[str] = Counter()
    training: list[Conversation] = []
    held_out: list[Conversation] = []
    for each in conversations:
        (training if counts[each.writer] % HELD_OUT else held_out).append(each)
        counts[each.writer] += 1
    return training, held_out


def frequent_tokens(conversations: Sequence[Conversation], count: int, vocab: int) -> Tensor:
    """The ``count`` most frequent tokens of all answers, ascending."""
    answers = [each.tokens[each.kinds == ANSWER] for each in conversations]
    counts = torch.bincount(torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *answers])), minlength=vocab)
    return counts.argsort(descending=True, stable=True)[:count].sort().values
