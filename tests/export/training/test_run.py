"""Whole training runs: they learn, and a stopped run continues."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.training.errors import TrainingError
from export.training.generate import generate_conversations
from export.training.run import TrainingRun, TrainingSettings
from export.training.segments import ANSWER, PROMPT, TEMPLATE, Segment
from export.training.shards import ShardWriter, StoredConversation, split, stored_conversations
from export.training.target import TorchTarget
from tests.support.tiny import VOCAB
from tests.support.training import CPU


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, target: HuggingFaceCheckpoint) -> Path:
    """Eight conversations that the target wrote."""
    directory, choice = tmp_path_factory.mktemp("data"), random.Random(0)

    def plans() -> Iterator[list[Segment]]:
        while True:
            yield [Segment(TEMPLATE, [1]), Segment(PROMPT, choice.choices(range(VOCAB), k=5)), Segment(ANSWER, limit=26, temperature=1.0)]

    writer = ShardWriter(directory, "words-000")
    for each in islice(generate_conversations(TorchTarget(target, 4, 32, CPU, torch.float32), plans(), 4, frozenset(), 0), 8):
        writer.add(each)
    writer.flush()
    return directory


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock for runs on which every update takes a second, so that they do not depend on the machine's speed."""
    now, update = [0.0], TrainingRun._update

    def timed(training: TrainingRun, group: Sequence[StoredConversation]) -> None:
        update(training, group)
        now[0] += 1

    monkeypatch.setattr(TrainingRun, "_update", timed)
    monkeypatch.setattr("export.training.run.time", SimpleNamespace(monotonic=lambda: now[0]))


def same(first: Any, second: Any) -> bool:
    """Deep equality of states."""
    if isinstance(first, Tensor):
        return bool(torch.equal(first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def test_run_learns_a_few_conversations_by_heart(tmp_path: Path, target: HuggingFaceCheckpoint, data: Path, seconds: None) -> None:
    training = TrainingRun(
        target, data, tmp_path, TrainingSettings(steps=2, vocab=256, rate=2e-2, batch_tokens=256, minutes=1.5, seed=0), CPU
    )
    learned, held_out = split(stored_conversations(data))
    assert (len(learned), len(held_out)) == (7, 1)
    before = training.agreement(learned)
    last = json.loads(list(training.train())[-1])
    assert last["updates"] == training.updates == 90
    assert last["tokens"] == training.tokens_seen
    assert max(first for first, _ in before) < 0.2
    assert min(first for first, _ in training.agreement(learned)) > 0.8
    assert max(last["top1"]) < 0.5  # but not of the held-out one: the target's text is noise
    assert (tmp_path / "log.jsonl").read_text().splitlines()[-1] == json.dumps(last)


def test_run_that_was_stopped_goes_on_where_it_was_saved(
    tmp_path: Path, target: HuggingFaceCheckpoint, data: Path, seconds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for interval in ("CHECKPOINT_SECONDS", "REPORT_SECONDS"):
        monkeypatch.setattr(f"export.training.run.{interval}", 10)
    settings = TrainingSettings(steps=2, vocab=64, rate=1e-3, batch_tokens=128, minutes=0.75, seed=0)
    stopped = TrainingRun(target, data, tmp_path, settings, CPU)
    lines = stopped.train()
    reported = [json.loads(next(lines))["updates"] for _ in range(2)]
    lines.close()  # type: ignore[attr-defined]
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert 0 < reported[0] < reported[1] == saved["updates"] < 45  # what was reported is saved
    resumed = TrainingRun(target, data, tmp_path, settings, CPU)
    for run in (stopped, resumed):
        assert (run.elapsed, run.updates, run.tokens_seen) == (saved["elapsed"], saved["updates"], saved["seen"])
        assert same(run.draft.state_dict(), saved["draft"])
        assert same(run.optimizer.state_dict(), saved["optimizer"])
        assert torch.equal(run.draft.tokens, saved["tokens"])
        assert torch.equal(run.unroller.draft_head, run.unroller.head[saved["tokens"]])
    assert json.loads(list(resumed.train())[-1])["updates"] == resumed.updates == 45
    assert not same(resumed.draft.state_dict(), stopped.draft.state_dict())
    again = TrainingRun(target, data, tmp_path, settings, CPU)
    assert same(again.draft.state_dict(), resumed.draft.state_dict())
    assert list(again.train()) == []  # its minutes are used up
    assert not list(tmp_path.glob(".*"))


def test_run_without_a_conversation_to_train_on_is_refused(tmp_path: Path, target: HuggingFaceCheckpoint, data: Path) -> None:
    settings = TrainingSettings(steps=30, vocab=64, rate=1e-3, batch_tokens=128, minutes=1, seed=0)
    with pytest.raises(TrainingError, match="no conversation to train on"):
        next(TrainingRun(target, data, tmp_path, settings, CPU).train())
