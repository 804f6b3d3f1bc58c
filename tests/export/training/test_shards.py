"""Training data: writing shards of conversations and reading them."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor

from export.training import shards
from export.training.segments import ANSWER
from export.training.shards import (
    HELD_OUT,
    Conversation,
    ShardWriter,
    StoredConversation,
    batches,
    frequent_tokens,
    split,
    stored_conversations,
)
from tests.support.tiny import VOCAB


def conversations(count: int, choice: random.Random, longest: int = 40) -> list[Conversation]:
    """Random conversations; each has its own number in its tokens."""
    generator = torch.Generator().manual_seed(choice.randrange(1 << 30))
    return [
        Conversation(
            torch.randint(VOCAB, (n,), generator=generator, dtype=torch.int32),
            torch.randint(3, (n,), generator=generator, dtype=torch.uint8),
            torch.randn(n, 12, generator=generator).bfloat16(),
            torch.randn(n, 4, generator=generator).bfloat16(),
        )
        for n in (choice.randint(1, longest) for _ in range(count))
    ]


def test_what_was_added_is_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_TOKENS", 100)
    added = conversations(30, random.Random(0))
    writer = ShardWriter(tmp_path / "data", "words-000")
    completed = sum(writer.add(each) for each in added)
    writer.flush()
    writer.flush()  # nothing is held: nothing is written
    files = sorted((tmp_path / "data").iterdir())
    assert completed <= len(files) <= completed + 1
    assert completed > 2

    found = stored_conversations(tmp_path / "data")
    assert writer.written == sum(map(len, added)) == sum(map(len, found))
    for entry, expected in zip(found, added, strict=True):
        actual = entry.load()
        for field in shards.FIELDS:
            torch.testing.assert_close(getattr(actual, field), getattr(expected, field), rtol=0, atol=0)
    answers = torch.cat([each.tokens[each.kinds == ANSWER] for each in added]).bincount(minlength=VOCAB)
    kept = frequent_tokens(tmp_path / "data", 50, VOCAB)
    assert kept.tolist() == sorted(set(kept.tolist()))
    others = [token for token in range(VOCAB) if token not in kept.tolist()]
    assert answers[kept].min() >= answers[others].max()


def test_shard_that_was_not_finished_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full during writing, readers see no shard, and the writer's next attempt is complete."""

    def half(_tensors: dict[str, Tensor], file: Path) -> None:
        file.write_bytes(b"half a shard")
        raise OSError("no space left")

    writer = ShardWriter(tmp_path, "words-000")
    writer.add(conversations(1, random.Random(0))[0])
    with monkeypatch.context() as full:
        full.setattr(shards, "save_file", half)
        with pytest.raises(OSError, match="no space"):
            writer.flush()
    assert list(tmp_path.iterdir())
    assert stored_conversations(tmp_path) == []
    writer.flush()
    assert [len(entry) for entry in stored_conversations(tmp_path)] == [writer.written]
    assert len(list(tmp_path.iterdir())) == 1


def some_conversations(stem: str, count: int, choice: random.Random) -> list[StoredConversation]:
    lengths = [choice.randint(5, 300) for _ in range(count)]
    return [
        StoredConversation(Path(f"{stem}-{index // 40:05d}.safetensors"), index * 1000, index * 1000 + n) for index, n in enumerate(lengths)
    ]


def test_batches_hold_every_conversation_once_and_are_bounded() -> None:
    every = [*some_conversations("words-001", 300, random.Random(0)), StoredConversation(Path("long"), 0, 1500)]
    groups = list(batches(every, 1000, 20, random.Random(1)))
    assert sorted(map(str, chain(*groups))) == sorted(str(entry) for entry in every if len(entry) >= 20)
    assert all(max(map(len, group)) * len(group) <= 1000 for group in groups if len(group) > 1)
    padding = sum(max(map(len, group)) * len(group) for group in groups) / sum(len(entry) for entry in chain(*groups))
    assert padding < 1.15
    assert list(batches(every, 1000, 20, random.Random(1))) == groups
    assert list(batches(every, 1000, 20, random.Random(2))) != groups
    assert list(batches(every[:0], 1000, 20, random.Random(1))) == []


def test_held_out_conversations_are_never_trained_on() -> None:
    """Also if shards are added between two epochs, by the same writer or by one whose name sorts before it."""
    words = some_conversations("words-001", 400, random.Random(0))
    answers = some_conversations("answers-chat", 130, random.Random(1))
    trained, held = set[StoredConversation](), set[StoredConversation]()
    for epoch in (words[:120], words, [*answers, *words]):
        training, held_out = split(epoch)
        assert sorted(map(str, [*training, *held_out])) == sorted(map(str, epoch))
        assert len(held_out) >= len(epoch) // HELD_OUT
        trained.update(training)
        held.update(held_out)
    assert not trained & held
