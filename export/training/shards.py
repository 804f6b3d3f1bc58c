"""Training data on disk: conversations with what the target computed at every token."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

SHARD_TOKENS = 50_000


@dataclass(frozen=True)
class Conversation:
    """A finished conversation of n tokens."""

    tokens: Tensor  # [n] int32
    kinds: Tensor  # [n] uint8: FORCED, PROMPT or ANSWER
    captures: Tensor  # [n, 3H]
    final: Tensor  # [n, H]: times the head, the logits of the token that follows

    def __len__(self) -> int:
        return len(self.tokens)


FIELDS = ("tokens", "kinds", "captures", "final")


class ShardWriter:
    """Collects conversations and writes a file for every SHARD_TOKENS tokens; a file that is there is complete.

    Raises FileExistsError where ``stem`` was used before: the same seed or file would give the same conversations once more.
    """

    def __init__(self, directory: Path, stem: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.glob(f"{stem}-*.safetensors")):
            raise FileExistsError(f"{directory} has shards {stem}-* already — choose another --seed, or remove them first")
        self.directory, self.stem = directory, stem
        self.written = 0
        self._held: list[Conversation] = []
        self._shards = 0

    def add(self, conversation: Conversation) -> bool:
        """True when this conversation completed a shard."""
        self._held.append(conversation)
        self.written += len(conversation)
        if sum(map(len, self._held)) < SHARD_TOKENS:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Write what is held."""
        if not self._held:
            return
        starts = torch.tensor([0, *map(len, self._held)]).cumsum(0)
        joined = {name: torch.cat([getattr(each, name) for each in self._held]) for name in FIELDS}
        name = f"{self.stem}-{self._shards:05d}.safetensors"
        partial = self.directory / f".{name}.partial"
        save_file({"starts": starts, **joined}, partial)
        partial.replace(self.directory / name)
        self._held, self._shards = [], self._shards + 1


@dataclass(frozen=True)
class Entry:
    """Where a conversation lies."""

    file: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def entries(directory: Path) -> list[Entry]:
    """Every conversation of every shard, in order."""
    found = []
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            starts = shard.get_tensor("starts").tolist()
        found += [Entry(file, start, stop) for start, stop in pairwise(starts)]
    return found


def read(entry: Entry) -> Conversation:
    """Load one conversation; the file is mapped, so only its own pages are read."""
    with safe_open(entry.file, "pt") as shard:
        return Conversation(*(shard.get_slice(name)[entry.start : entry.stop] for name in FIELDS))


def batches(conversations: Sequence[Entry], tokens: int, shortest: int, choice: random.Random) -> Iterator[list[Entry]]:
    """One epoch of groups of at most ``tokens`` padded tokens, alike in length, in random order."""
    ordered = sorted((entry for entry in conversations if len(entry) >= shortest), key=lambda entry: (len(entry), choice.random()))
    groups: list[list[Entry]] = []
    for entry in ordered:
        if not groups or len(entry) * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(entry)
    choice.shuffle(groups)
    yield from groups
