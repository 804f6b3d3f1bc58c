"""Training data: writing shards of conversations, reading them and other files, and the order in which they are trained on."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from export.training.errors import TrainingError
from export.training.words import corpus
from export.training.words.corpus import (
    HELD_OUT,
    Conversation,
    ShardWriter,
    batches,
    epoch,
    frequent_tokens,
    read_corpus,
    read_lines,
    split,
)
from export.training.words.segments import ANSWER, PROMPT, TEMPLATE, TemplateTokens
from tests.support.tiny import VOCAB


def conversations(count: int, seed: int, writer: str = "words-001", longest: int = 300) -> list[Conversation]:
    numbers = np.random.default_rng(seed)
    return [
        Conversation(numbers.integers(0, VOCAB, n, np.int32), numbers.integers(0, 3, n, np.uint8), ("chat", "long text")[n % 2], writer)
        for n in numbers.integers(5, longest, count).tolist()
    ]


def contents(found: list[Conversation]) -> list[tuple[list[int], list[int], str]]:
    return [(each.tokens.tolist(), each.kinds.tolist(), each.text) for each in found]


def no_lines(_: Path) -> list[Conversation]:
    raise AssertionError


def test_what_was_added_is_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SHARD_TOKENS", 1000)
    added = conversations(30, 0)
    writer = ShardWriter(tmp_path / "data", "words-001")
    for each in added:
        writer.add(each)
    writer.flush()
    writer.flush()  # nothing is held: nothing is written
    files = sorted((tmp_path / "data").iterdir())
    assert len(files) > 2
    found = read_corpus([tmp_path / "data"], VOCAB, no_lines)
    assert contents(found) == contents(added)
    assert {each.writer for each in found} == {str((tmp_path / "data").resolve() / "words-001")}
    assert writer.written == sum(map(len, added))
    assert contents(read_corpus(files[:2], VOCAB, no_lines)) == contents(added)[: len(read_corpus(files[:2], VOCAB, no_lines))]
    with pytest.raises(TrainingError, match=r"has shards words-001-\* already"):
        ShardWriter(tmp_path / "data", "words-001")


def test_file_without_kinds_of_text_has_its_name_as_kind(tmp_path: Path) -> None:
    """The form in which the arrays of many conversations are handed on."""
    tokens, kinds = np.arange(7, dtype=np.uint16), np.array([0, 1, 2, 2, 0, 2, 2], np.uint8)
    np.savez_compressed(tmp_path / "own-words.npz", tokens=tokens, kinds=kinds, lengths=np.array([4, 3], np.int32))
    found = read_corpus([tmp_path / "own-words.npz"], VOCAB, no_lines)
    assert contents(found) == [([0, 1, 2, 3], [0, 1, 2, 2], "own-words"), ([4, 5, 6], [0, 2, 2], "own-words")]


def test_lines_are_conversations_in_the_chat_template(tmp_path: Path) -> None:
    file, template = tmp_path / "some.jsonl", TemplateTokens([1, 2], [3], [9, 4], frozenset({9}))
    talks = [{"prompt": "ab", "answer": "c"}, {"prompt": "d", "answer": "ef", "finished": False}]
    file.write_text("".join(json.dumps(each) + "\n" for each in talks))

    def encode(text: str) -> list[int]:
        return list(text.encode())

    found = read_corpus([file], VOCAB, lambda each: read_lines(each, encode, template))
    t, p, a = TEMPLATE, PROMPT, ANSWER
    assert contents(found) == [
        ([1, 2, 97, 98, 3, 99, 9], [t, t, p, p, t, a, a], "some"),
        ([1, 2, 100, 3, 101, 102], [t, t, p, t, a, a], "some"),
    ]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({}, "holds no conversations"),
        ({"tokens": [1, 2], "kinds": [0, 2], "lengths": [3]}, "do not fit together"),
        ({"tokens": [1, 2], "kinds": [0], "lengths": [2]}, "do not fit together"),
        ({"tokens": [1, VOCAB], "kinds": [0, 2], "lengths": [2]}, "has tokens that this target does not have"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, arrays: dict[str, list[int]], says: str) -> None:
    file = tmp_path / "words.npz"
    np.savez(file, **{name: np.array(values) for name, values in arrays.items()})  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=says):
        read_corpus([file], VOCAB, no_lines)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(TrainingError, match="holds no conversations"):
        read_corpus([file], VOCAB, no_lines)


def test_shard_that_was_not_finished_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full during writing, readers see no shard, and the writer's next attempt is complete."""

    def half(file: object, **_: object) -> None:
        raise OSError("no space left")

    writer = ShardWriter(tmp_path, "words-000")
    writer.add(conversations(1, 0)[0])
    with monkeypatch.context() as full:
        full.setattr(np, "savez_compressed", half)
        with pytest.raises(OSError, match="no space"):
            writer.flush()
    assert list(tmp_path.iterdir())
    assert read_corpus([tmp_path], VOCAB, no_lines) == []
    writer.flush()
    assert [len(each) for each in read_corpus([tmp_path], VOCAB, no_lines)] == [writer.written]
    assert len(list(tmp_path.iterdir())) == 1


def test_batches_hold_every_conversation_once_and_are_bounded() -> None:
    every = [*conversations(300, 0), *conversations(1, 1, longest=6), Conversation(np.arange(1500), np.zeros(1500, np.uint8), "chat")]
    groups = list(batches(every, 1000, 20, random.Random(1)))
    expected = [each.cut(1000).tokens.tolist() for each in every if len(each) >= 20]
    assert sorted(each.tokens.tolist() for each in chain(*groups)) == sorted(expected)
    assert all(max(map(len, group)) * len(group) <= 1000 for group in groups)
    padding = sum(max(map(len, group)) * len(group) for group in groups) / sum(len(each) for each in chain(*groups))
    assert padding < 1.15

    def order(seed: int) -> list[list[int]]:
        return [list(map(len, group)) for group in batches(every, 1000, 20, random.Random(seed))]

    assert order(1) == order(1) != order(2)
    assert list(batches(every[:0], 1000, 20, random.Random(1))) == []


def test_weights_are_how_often_a_text_comes_in_an_epoch() -> None:
    every = conversations(400, 0)
    there = Counter(each.text for each in every)
    assert epoch(every, {}, random.Random(0)) == every
    came = Counter(each.text for each in epoch(every, {"long text": 2.5, "chat": 0}, random.Random(0)))
    assert came["chat"] == 0
    assert 2 * there["long text"] < came["long text"] < 3 * there["long text"]


def test_held_out_conversations_are_never_trained_on() -> None:
    """Also if shards are added between two epochs, by the same writer or by one whose name sorts before it."""
    words, answers = conversations(400, 0), conversations(130, 1, "answers")
    trained, held = set[int](), set[int]()
    for read in (words[:120], words, [*answers, *words]):
        training, held_out = split(read)
        assert sorted(map(id, [*training, *held_out])) == sorted(map(id, read))
        assert len(held_out) >= len(read) // HELD_OUT
        trained.update(map(id, training))
        held.update(map(id, held_out))
    assert not trained & held


def test_draft_tokens_are_the_most_frequent_of_the_answers() -> None:
    every = conversations(60, 0)
    answers = Counter(chain(*(each.tokens[each.kinds == ANSWER].tolist() for each in every)))
    kept = frequent_tokens(every, 50, VOCAB).tolist()
    assert kept == sorted(set(kept))
    assert min(answers[token] for token in kept) >= max(answers[token] for token in range(VOCAB) if token not in kept)


def test_directories_whose_shards_have_the_same_names_are_held_out_apart(tmp_path: Path) -> None:
    """So what was held out stays so when another directory is added before or behind."""
    for name, seed, count in (("data", 0, 120), ("more", 1, 59)):
        writer = ShardWriter(tmp_path / name, "words-000")
        for each in conversations(count, seed):
            writer.add(each)
        writer.flush()
    data, more = tmp_path / "data", tmp_path / "more"
    alone = [contents(split(read_corpus([each], VOCAB, no_lines))[1]) for each in (data, more)]
    assert contents(split(read_corpus([more, data], VOCAB, no_lines))[1]) == [*alone[1], *alone[0]]
    assert contents(split(read_corpus([data, more], VOCAB, no_lines))[1]) == [*alone[0], *alone[1]]
