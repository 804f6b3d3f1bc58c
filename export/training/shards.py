"""Training data on disk: conversations with the hidden states that the target computed at every token."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import TrainingError
from .segments import ANSWER

SHARD_TOKENS = 50_000
HELD_OUT = 50  # one of so many conversations is held out


@dataclass(frozen=True)
class Conversation:
    """A finished conversation of n tokens."""

    tokens: Tensor  # [n] int32
    kinds: Tensor  # [n] uint8: TEMPLATE, PROMPT or ANSWER
    captures: Tensor  # [n, 3H]: the captured hidden states
    final: Tensor  # [n, H]: after the final norm; times the head they are the logits of the next token

    def __len__(self) -> int:
        return len(self.tokens)


FIELDS = ("tokens", "kinds", "captures", "final")


class ShardWriter:
    """Collects conversations and writes a file for every SHARD_TOKENS tokens. Files appear under their names only when complete.

    Raises TrainingError if ``stem`` was used before: the same seed or file would give the same conversations again.
    """

    def __init__(self, directory: Path, stem: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.glob(f"{stem}-*.safetensors")):
            raise TrainingError(f"{directory} has shards {stem}-* already — choose another --seed or file, or remove them first")
        self.directory, self.stem = directory, stem
        self.written = 0
        self._pending: list[Conversation] = []
        self._shards = 0

    def add(self, conversation: Conversation) -> bool:
        """True when this conversation completed a shard."""
        self._pending.append(conversation)
        self.written += len(conversation)
        if sum(map(len, self._pending)) < SHARD_TOKENS:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Write the conversations that are in no shard yet."""
        if not self._pending:
            return
        starts = torch.tensor([0, *map(len, self._pending)]).cumsum(0)
        joined = {name: torch.cat([getattr(each, name) for each in self._pending]) for name in FIELDS}
        name = f"{self.stem}-{self._shards:05d}.safetensors"
        partial = self.directory / f".{name}.partial"
        save_file({"starts": starts, **joined}, partial)
        partial.replace(self.directory / name)
        self._pending, self._shards = [], self._shards + 1


@dataclass(frozen=True)
class StoredConversation:
    """The rows [start, stop) of a shard."""

    file: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def load(self) -> Conversation:
        """The file is mapped, so only the pages of this conversation are read."""
        with safe_open(self.file, "pt") as shard:
            return Conversation(*(shard.get_slice(name)[self.start : self.stop] for name in FIELDS))


def stored_conversations(directory: Path) -> list[StoredConversation]:
    """Every conversation of every shard, in order."""
    found = []
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            starts = shard.get_tensor("starts").tolist()
        found += [StoredConversation(file, start, stop) for start, stop in pairwise(starts)]
    return found


def batches(
    conversations: Sequence[StoredConversation], tokens: int, shortest: int, choice: random.Random
) -> Iterator[list[StoredConversation]]:
    """One epoch: groups of similar length with at most ``tokens`` tokens, padding included, in random order. Conversations of fewer than
    ``shortest`` tokens are left out."""
    long_enough = [each for each in conversations if len(each) >= shortest]
    groups: list[list[StoredConversation]] = []
    for each in sorted(long_enough, key=lambda each: (len(each), choice.random())):
        if not groups or len(each) * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(each)
    choice.shuffle(groups)
    yield from groups


def split(conversations: Sequence[StoredConversation]) -> tuple[list[StoredConversation], list[StoredConversation]]:
    """(training, held out). Counted separately for every writer, so that the shards of another one, added later, change nothing."""
    counts: Counter[str] = Counter()
    training: list[StoredConversation] = []
    held_out: list[StoredConversation] = []
    for each in conversations:
        writer = each.file.stem.rpartition("-")[0]
        (training if counts[writer] % HELD_OUT else held_out).append(each)
        counts[writer] += 1
    return training, held_out


def frequent_tokens(directory: Path, count: int, vocab: int) -> Tensor:
    """The ``count`` most frequent tokens of all answers, ascending."""
    counts = torch.zeros(vocab, dtype=torch.long)
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            answers = shard.get_tensor("tokens").long()[shard.get_tensor("kinds") == ANSWER]
        counts += torch.bincount(answers, minlength=vocab)
    return counts.argsort(descending=True, stable=True)[:count].sort().values
