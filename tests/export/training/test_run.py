"""Whole training runs: they learn, and a stopped run continues."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from export.checkpoints.draft_checkpoint import open_draft
from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.training.errors import TrainingError
from export.training.held_out import agreement, rates_of
from export.training.names import LOSSES
from export.training.pack import pack_run
from export.training.run import TrainingRun, TrainingSettings
from export.training.target import TorchTarget
from export.training.words.corpus import Conversation
from export.training.words.generate import generate_conversations
from export.training.words.segments import ANSWER, PROMPT, TEMPLATE, Plan, Segment
from tests.support.tiny import VOCAB
from tests.support.training import CPU


@pytest.fixture(scope="module")
def corpus(target: HuggingFaceCheckpoint) -> list[Conversation]:
    """Eight conversations that the target wrote, of two kinds of text."""
    choice = random.Random(0)

    def plan(number: int) -> Plan:
        prompt = Segment(PROMPT, choice.choices(range(VOCAB), k=5))
        return Plan(("even", "odd")[number % 2], [Segment(TEMPLATE, [1]), prompt, Segment(ANSWER, limit=26, temperature=1.0)])

    plans = map(plan, range(10**6))
    return list(islice(generate_conversations(TorchTarget(target, 4, 32, CPU, torch.float32), plans, 4, frozenset(), 0), 8))


def settings(**given: Any) -> TrainingSettings:
    return TrainingSettings(**{"steps": 2, "vocab": 64, "rate": 1e-3, "batch_tokens": 128, "minutes": 0.75, "seed": 0, **given})


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock for runs on which every update takes a second, so that they do not depend on the machine's speed."""
    now, update = [0.0], TrainingRun._update

    def timed(training: TrainingRun, group: Sequence[Conversation]) -> None:
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


def first_guesses(run: TrainingRun, conversations: Sequence[Conversation]) -> list[float]:
    return [first for first, _ in rates_of(sum(agreement(conversations, run._batches, run._scores).values()))]


def test_run_learns_a_few_conversations_by_heart(
    tmp_path: Path, target: HuggingFaceCheckpoint, corpus: list[Conversation], seconds: None
) -> None:
    training = TrainingRun(target, corpus, tmp_path, settings(vocab=256, rate=2e-2, batch_tokens=256, minutes=1.5), CPU)
    assert (len(training.training), len(training.held_out)) == (7, 1)
    before = first_guesses(training, training.training)
    (line,) = training.train()
    last = training.history[-1]
    assert last["updates"] == training.updates == 90
    assert last["tokens"] == training.tokens_seen
    assert f"{training.tokens_seen:,} tokens, loss {last['loss']:.3f}, held out" in line
    assert max(before) < 0.2
    assert min(first_guesses(training, training.training)) > 0.8
    assert max(last["top1"]) < 0.5  # but not of the held-out one: the target's text is noise
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == training.history


@pytest.mark.parametrize(("loss", "norms"), [*((loss, False) for loss in LOSSES), ("soft", True)])
def test_every_loss_and_both_forms_learn_and_are_packed(
    tmp_path: Path, target: HuggingFaceCheckpoint, corpus: list[Conversation], seconds: None, loss: str, norms: bool
) -> None:
    training = TrainingRun(target, corpus, tmp_path, settings(loss=loss, norms=norms, rate=1e-2, minutes=0.5), CPU)
    before = first_guesses(training, training.training)
    list(training.train())
    assert training.updates == 30
    assert all(after > first + 0.1 for after, first in zip(first_guesses(training, training.training), before, strict=True))
    pack_run(tmp_path, tmp_path / "draft", "specforge", "")
    given = open_draft(tmp_path / "draft", target)
    assert (given.arch.fc_norm, given.arch.norm_output) == (norms, norms)
    again = TrainingRun(target, corpus, tmp_path / "second", settings(), CPU, given)
    for name, value in training.draft.state_dict().items():
        assert torch.equal(again.draft.state_dict()[name], value.bfloat16().float()), name


def test_run_that_was_stopped_goes_on_where_it_was_saved(
    tmp_path: Path, target: HuggingFaceCheckpoint, corpus: list[Conversation], seconds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for interval in ("CHECKPOINT_SECONDS", "REPORT_SECONDS"):
        monkeypatch.setattr(f"export.training.run.{interval}", 10)
    stopped = TrainingRun(target, corpus, tmp_path, settings(norms=True), CPU)
    lines = stopped.train()
    next(lines), next(lines)
    lines.close()  # type: ignore[attr-defined]
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert 0 < saved["history"][0]["updates"] < saved["history"][1]["updates"] == saved["updates"] < 45  # what was reported is saved
    resumed = TrainingRun(target, corpus, tmp_path, settings(), CPU)
    for run in (stopped, resumed):
        assert (run.elapsed, run.updates, run.tokens_seen) == (saved["elapsed"], saved["updates"], saved["seen"])
        assert same(run.draft.state_dict(), saved["draft"])
        assert same(run.optimizer.state_dict(), saved["optimizer"])
        assert run.history == saved["history"]
        assert torch.equal(run.draft.tokens, saved["tokens"])
        assert torch.equal(run.unroller.draft_head, run.unroller.head[saved["tokens"]])
    list(resumed.train())
    assert resumed.history[-1]["updates"] == resumed.updates == 45
    assert resumed.history[:2] == saved["history"]
    assert not same(resumed.draft.state_dict(), stopped.draft.state_dict())
    again = TrainingRun(target, corpus, tmp_path, settings(), CPU)
    assert same(again.draft.state_dict(), resumed.draft.state_dict())
    assert list(again.train()) == []  # its minutes are used up
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert not list(tmp_path.glob(".*"))
    chains = [report["chain"] for report in resumed.history]
    assert (chains[-1] == max(chains)) <= same(best["draft"], again.draft.state_dict())


def test_run_ends_when_held_out_acceptance_stops_rising_or_its_tokens_are_seen(
    tmp_path: Path, target: HuggingFaceCheckpoint, corpus: list[Conversation], seconds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.training.run.REPORT_SECONDS", 2)
    rising = iter([1, 2, 1.5, 3, 2.9, 3])
    monkeypatch.setattr("export.training.run.chain_length", lambda rates: next(rising))
    stopped = TrainingRun(target, corpus, tmp_path / "patience", settings(patience=2), CPU)
    assert list(stopped.train())[-1] == "held-out acceptance has not risen in 2 reports: the run ends"
    assert [report["chain"] for report in stopped.history] == [1, 2, 1.5, 3, 2.9, 3]
    assert list(TrainingRun(target, corpus, tmp_path / "patience", settings(patience=2), CPU).train())[:-1] == []
    monkeypatch.undo()
    short = TrainingRun(target, corpus, tmp_path / "tokens", settings(tokens=400, minutes=1000), CPU)
    list(short.train())
    assert 400 <= short.tokens_seen < 400 + 128


def test_run_without_a_conversation_to_train_on_is_refused(
    tmp_path: Path, target: HuggingFaceCheckpoint, corpus: list[Conversation]
) -> None:
    with pytest.raises(TrainingError, match="no conversation to train on"):
        TrainingRun(target, corpus, tmp_path, settings(steps=30), CPU)
    with pytest.raises(TrainingError, match="no conversation to train on"):
        TrainingRun(target, corpus, tmp_path, settings(weights={"even": 0, "odd": 0}), CPU)


def test_reports_that_asked_something_else_are_no_measure_for_the_best_draft(
    tmp_path: Path, target: HuggingFaceCheckpoint, corpus: list[Conversation], seconds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on with fewer steps, whose chains are shorter."""
    monkeypatch.setattr("export.training.run.REPORT_SECONDS", 10)
    chains = iter([3.0, 3.0, 3.0, 1.5, 1.6, 1.4, 1.5, 1.5])
    monkeypatch.setattr("export.training.run.chain_length", lambda rates: next(chains))
    first = TrainingRun(target, corpus, tmp_path, settings(patience=2), CPU)
    assert list(first.train())[-1].endswith("the run ends")
    again = TrainingRun(target, corpus, tmp_path, settings(patience=2, steps=1, minutes=1.5), CPU)
    assert not again.stale
    lines = list(again.train())
    assert len(lines) == 5
    assert "chain 1.500" in lines[0]  # of the draft as it was
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    saved = [report["chain"] for report in again.history]
    assert saved == [3.0, 3.0, 3.0, 1.5, 1.6, 1.4, 1.5]
    assert not same(best["draft"], again.draft.state_dict())
    page = (tmp_path / "report.html").read_text()
    assert "the best so far 1.600" in page
    assert "<td>vocab</td><td>64</td>" in page
