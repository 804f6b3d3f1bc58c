"""One training run: its data, optimizer, checkpoints and history."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.draft_checkpoint import DraftCheckpoint
from ..checkpoints.safetensors import Checkpoint
from .budget import return_unused
from .draft import DraftShape, TorchDraft
from .errors import TrainingError
from .held_out import agreement, chain_length, choose_held_out, comparable, rates_of
from .pack import draft_config
from .report import Report, write_report
from .states import States
from .target import TorchTarget, compute_type
from .unroll import StepScore, Unroller, collate, weighted_loss
from .words.corpus import Conversation, batches, epoch, frequent_tokens, split

CHECKPOINT_SECONDS, REPORT_SECONDS = 120, 300
REPORT_SHARE = 0.1  # of the time at most goes into reports
WARM_UP = 0.02  # share of the run over which the learning rate rises
LAST_RATE = 0.03  # last learning rate, as a share of the peak
SPARE_TOKENS = 8  # a conversation is used if it has this many tokens more than there are steps


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a run.

    rate: peak learning rate. batch_tokens: tokens per update, padding included. minutes: length of the run, over which the learning rate
    follows a cosine; tokens: its length as well, if it is reached before. patience: reports without a better held-out chain after which it
    ends, 0 for never. loss: one of names.LOSSES. weights: how often a kind of text comes in an epoch. keep: bytes on disk for what the
    target computed. Of a new run only: vocab, the size of the draft's vocabulary; norms: EAGLE-3.1's.
    """

    steps: int
    rate: float
    batch_tokens: int
    minutes: float
    seed: int
    vocab: int = 8192
    tokens: int | None = None
    patience: int = 0
    norms: bool = False
    loss: str = "soft"
    weights: Mapping[str, float] = field(default_factory=dict)
    keep: int = 0


class TrainingRun:
    """A run in the directory ``out``: a new one, or the continuation of the one that is there. ``draft``: where a new one begins [default:
    the target's last layer]."""

    def __init__(
        self,
        target: Checkpoint,
        corpus: Sequence[Conversation],
        out: Path,
        settings: TrainingSettings,
        device: torch.device,
        draft: DraftCheckpoint | None = None,
        progress: Callable[[str, int, int, str], None] = lambda *_: None,
        rest: int | None = None,
    ) -> None:
        """``rest``: bytes of memory that the process may keep between updates [default: all]. Raises TrainingError if no conversation is
        long enough."""
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.settings, self.device, self.progress, self.rest = out, settings, device, progress, rest
        longest = min(settings.batch_tokens, max(map(len, corpus), default=0))
        self.target = TorchTarget(target, 0, longest + settings.steps + 1, device, compute_type(device))
        self.states = States(self.target, out / ".states", settings.keep)
        training, held_out = split(corpus)
        self.training = [each for each in training if settings.weights.get(each.text, 1.0) > 0]
        if not list(self._batches(self.training, random.Random(0))):
            raise TrainingError("the data has no conversation to train on that is long enough — add some: resps-train words")
        self.held_out = choose_held_out(held_out)
        self.question, saved = _question([each.cut(settings.batch_tokens) for each in self.held_out], settings.steps), saved_run(out)
        self.history: list[dict[str, Any]] = saved["history"] if saved else []
        self.elapsed: float = saved["elapsed"] if saved else 0.0
        self.updates: int = saved["updates"] if saved else 0
        self.tokens_seen: int = saved["seen"] if saved else 0
        torch.manual_seed(settings.seed)
        self.draft = self._draft(target, corpus, draft, saved)
        # AdamW with EAGLE-3's betas; gradients are clipped at 0.5 as there.
        self.optimizer = torch.optim.AdamW(self.draft.parameters(), lr=settings.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        if saved:
            self.optimizer.load_state_dict(saved["optimizer"])
        shape, of = self.draft.shape, self.target.cos
        cos, sin = (torch.from_numpy(each).to(of) for each in shape.rope.tables(shape.head_dim, len(of)))
        self.unroller = Unroller(self.draft, self.target.embedding, self.target.head, cos, sin, settings.steps, settings.loss)
        self.config = draft_config(shape)
        # Then the draft as it is becomes the first candidate for the best one. What was asked otherwise before is no measure for it.
        self._begins_with_report = (draft is not None and saved is None) or (bool(self.history) and not self._chains)
        self._losses: list[float] = []

    def _draft(
        self, target: Checkpoint, corpus: Sequence[Conversation], given: DraftCheckpoint | None, saved: dict[str, Any] | None
    ) -> TorchDraft:
        """The draft as it was saved, or as a run begins."""
        arch, norms = target.arch, self.settings.norms
        if saved:
            tokens, norms = saved["tokens"], saved["config"]["norm_output"]
        elif given:
            tokens, norms = torch.from_numpy(given.tokens), given.arch.norm_output
        else:
            tokens = frequent_tokens(corpus, self.settings.vocab, arch.vocab)
        draft = TorchDraft(DraftShape.of_target(arch, norms), tokens)
        if saved:
            draft.load_state_dict(saved["draft"])
        elif given:
            draft.init_from_draft(given)
        else:
            draft.init_from_target(target)
        draft.to(self.device)
        if norms and not saved and not given:
            draft.scale_norms(self._collated(next(self._batches(self.training, random.Random(0)))).captures)
        return draft

    @property
    def done(self) -> float:
        """Which share of the run is over."""
        by_tokens = self.tokens_seen / self.settings.tokens if self.settings.tokens else 0.0
        by_time: float = self.elapsed / (60 * self.settings.minutes)
        return max(by_time, by_tokens)

    @property
    def _chains(self) -> list[float]:
        """Of the last reports, which asked what is asked now."""
        return comparable(self.history, self.question)

    @property
    def stale(self) -> bool:
        """Whether held-out acceptance stopped rising."""
        chains, patience = self._chains, self.settings.patience
        return 0 < patience < len(chains) and max(chains[-patience:]) <= max(chains[:-patience])

    def train(self) -> Iterator[str]:
        """Train until the run is over; yields a line for every report."""
        choice = random.Random(self.settings.seed + self.updates)
        if self._begins_with_report and self.done < 1:
            self._report()
            self._save()
            yield self._line()
        saved_at = reported_at = began = time.monotonic()
        before, wait = self.elapsed, float(REPORT_SECONDS)
        while self.done < 1 and not self.stale:
            for group in self._batches(epoch(self.training, self.settings.weights, choice), choice):
                self._update(group)
                self.elapsed = before + time.monotonic() - began
                self._say_progress()
                due = self.done >= 1 or time.monotonic() - reported_at > wait
                if due:
                    began_report = time.monotonic()
                    self._report()
                    wait = max(REPORT_SECONDS, (time.monotonic() - began_report) / REPORT_SHARE)
                if due or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    self._save()
                    saved_at = time.monotonic()
                if due:
                    yield self._line()
                    reported_at = time.monotonic()
                if self.done >= 1 or (due and self.stale):
                    break
        if self.stale:
            yield f"held-out acceptance has not risen in {self.settings.patience} reports: the run ends"

    def _say_progress(self) -> None:
        loss = f", loss {self._losses[-1]:.2f}" if self._losses else ""
        self.progress("training", min(1000, int(1000 * self.done)), 1000, f"{self.tokens_seen:,} tokens{loss}")

    def _batches(self, conversations: Sequence[Conversation], choice: random.Random) -> Iterator[list[Conversation]]:
        return batches(conversations, self.settings.batch_tokens, self.settings.steps + SPARE_TOKENS, choice)

    def _collated(self, group: Sequence[Conversation]) -> Any:
        return collate(group, self.states, self.device)

    @property
    def rate(self) -> float:
        """The learning rate now."""
        return self.settings.rate * schedule(self.done)

    def _update(self, group: Sequence[Conversation]) -> None:
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.rate
        scores = self._scores(group)
        if not scores[0].rows:
            return
        self.optimizer.zero_grad()
        loss = weighted_loss(scores, self.settings.loss)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), 0.5)
        self.optimizer.step()
        self._losses.append(float(loss.detach()))
        self.updates += 1
        self.tokens_seen += sum(map(len, group))
        if self.rest is not None:
            return_unused(self.rest)

    def _scores(self, group: Sequence[Conversation]) -> list[StepScore]:
        batch = self._collated(group)  # the target computes in its own type, outside of autocast
        with torch.autocast(self.device.type, torch.bfloat16, enabled=batch.final.dtype == torch.bfloat16):
            scores: list[StepScore] = self.unroller(batch)
        return scores

    def _report(self) -> None:
        progress = (lambda done, total: self.progress("held-out text", done, total, "")) if not self.updates else (lambda *_: None)
        counts = agreement(self.held_out, self._batches, self._scores, progress)
        texts = {text: [round(first, 4) for first, _ in rates_of(each)] for text, each in counts.items()}
        overall = rates_of(sum(counts.values())) if counts else []
        self.history.append(
            {
                "question": self.question,
                "minutes": round(self.elapsed / 60, 1),
                "updates": self.updates,
                "tokens": self.tokens_seen,
                "loss": round(sum(self._losses) / len(self._losses), 4) if self._losses else None,
                "rate": self.rate,
                "top1": [round(first, 4) for first, _ in overall],
                "top3": [round(third, 4) for _, third in overall],
                "texts": texts,
                "chain": round(chain_length([first for first, _ in overall]), 4),
            }
        )
        self._losses = []

    def _line(self) -> str:
        last = self.history[-1]
        rates = " ".join(f"{rate:.3f}" for rate in last["top1"])
        loss = "" if last["loss"] is None else f"loss {last['loss']:.3f}, "
        return f"{last['minutes']:.0f} min, {last['tokens']:,} tokens, {loss}held out: accepted by depth {rates}, chain {last['chain']:.3f}"

    def _save(self) -> None:
        """Everything into state.pt, in one rename; what is derived from it beside it. The best draft so far goes to best.pt first."""
        draft = {
            "draft": self.draft.state_dict(),
            "tokens": self.draft.tokens,
            "config": self.config,
            "target": self.target.arch.model_type,
        }
        measured = bool(self.history) and self.history[-1]["updates"] == self.updates
        if measured and self._chains and self._chains[-1] == max(self._chains):
            _replace(self.out / "best.pt", draft)
        state = {
            **draft,
            "optimizer": self.optimizer.state_dict(),
            "elapsed": self.elapsed,
            "updates": self.updates,
            "seen": self.tokens_seen,
            "history": self.history,
        }
        _replace(self.out / "state.pt", state)
        if measured:
            (self.out / "log.jsonl").write_text("".join(json.dumps(report) + "\n" for report in self.history), encoding="utf-8")
            own = {"vocab": len(self.draft.tokens), "norms": self.draft.shape.norm_output}
            write_report(self.out / "report.html", Report(self.history, {**asdict(self.settings), **own}, self.training, self.held_out))


def saved_run(out: Path, mapped: bool = False) -> dict[str, Any] | None:
    """What the run in ``out`` saved last; None if there is none. ``mapped``: its tensors stay on disk until they are read."""
    file = out / "state.pt"
    found: dict[str, Any] | None = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped) if file.exists() else None
    return found


def _question(held_out: Sequence[Conversation], steps: int) -> str:
    """Stands for what a report asks: only chains of the same conversations and steps can be compared."""
    found = blake2b(str(steps).encode(), digest_size=8)
    for each in held_out:
        found.update(each.tokens.tobytes() + each.text.encode())
    return found.hexdigest()


def _replace(file: Path, state: dict[str, Any]) -> None:
    partial = file.with_name(f".{file.name}.partial")
    torch.save(state, partial)
    partial.replace(file)


def schedule(done: float) -> float:
    """Learning rate as a share of its peak, when the share ``done`` of the run is over."""
    if done < WARM_UP:
        return done / WARM_UP
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARM_UP) / (1 - WARM_UP))))
