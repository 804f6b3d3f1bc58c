"""One training run: its data, optimizer, checkpoints and log."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.safetensors import Checkpoint
from .draft import DraftShape, TorchDraft
from .errors import TrainingError
from .pack import draft_config
from .shards import StoredConversation, batches, frequent_tokens, split, stored_conversations
from .unroll import StepScore, Unroller, chain_length, collate, weighted_loss

CHECKPOINT_SECONDS, REPORT_SECONDS = 120, 300
REPORTED = 60  # held-out conversations in a report during training; the last report uses all
WARM_UP = 0.02  # share of the run over which the learning rate rises
LAST_RATE = 0.03  # last learning rate, as a share of the peak
SPARE_TOKENS = 8  # a conversation is used if it has this many tokens more than there are steps


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a run. ``minutes``: its length, over which the learning rate follows a cosine; ``vocab``: size of the draft's vocabulary;
    ``rate``: peak learning rate; ``batch_tokens``: tokens per update, padding included."""

    steps: int
    vocab: int
    rate: float
    batch_tokens: int
    minutes: float
    seed: int


class TrainingRun:
    """A run in the directory ``out``: a new one, or the continuation of the one that is there."""

    def __init__(self, target: Checkpoint, data: Path, out: Path, settings: TrainingSettings, device: torch.device) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.data, self.settings, self.device = out, data, settings, device
        arch = target.arch
        saved = torch.load(out / "state.pt", weights_only=True) if (out / "state.pt").exists() else None
        tokens = saved["tokens"] if saved else frequent_tokens(data, settings.vocab, arch.vocab)
        torch.manual_seed(settings.seed)
        self.draft = TorchDraft(DraftShape.of_target(arch), tokens)
        if saved:
            self.draft.load_state_dict(saved["draft"])
        else:
            self.draft.init_from_target(target)
        self.draft.to(device)
        # AdamW with EAGLE-3's betas; gradients are clipped at 0.5 as there.
        self.optimizer = torch.optim.AdamW(self.draft.parameters(), lr=settings.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.elapsed, self.updates, self.tokens_seen = 0.0, 0, 0
        if saved:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.elapsed, self.updates, self.tokens_seen = saved["elapsed"], saved["updates"], saved["seen"]
        embedding = torch.tensor(target.read("model.embed_tokens.weight")).to(device, torch.bfloat16)
        head = embedding if arch.tied_head else torch.tensor(target.read("lm_head.weight")).to(device, torch.bfloat16)
        cos, sin = (torch.from_numpy(table).to(device, torch.bfloat16) for table in arch.rope.tables(arch.head_dim, arch.max_position))
        self.unroller = Unroller(self.draft, embedding, head, cos, sin, settings.steps)
        self.description = {"settings": asdict(settings), "draft": draft_config(self.draft.shape), "target": target.path.name}

    def train(self) -> Iterator[str]:
        """Train until the minutes are over; yields reports as JSON lines. Raises TrainingError if no conversation is long enough."""
        choice = random.Random(self.settings.seed + self.updates)
        saved_at = reported_at = began = time.monotonic()
        before = self.elapsed
        while self.elapsed < 60 * self.settings.minutes:
            training, held_out = split(stored_conversations(self.data))  # again in every epoch: shards may have been added
            groups = list(self._batches(training, choice))
            if not groups:
                raise TrainingError(f"{self.data} has no conversation to train on that is long enough — add some: resps-train words")
            for group in groups:
                self._update(group)
                self.elapsed = before + time.monotonic() - began
                over = self.elapsed >= 60 * self.settings.minutes
                if over or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    self._save()
                    saved_at = time.monotonic()
                if over or time.monotonic() - reported_at > REPORT_SECONDS:
                    yield self._report(held_out if over else held_out[:REPORTED])
                    reported_at = time.monotonic()
                if over:
                    break

    def _batches(self, conversations: Sequence[StoredConversation], choice: random.Random) -> Iterator[list[StoredConversation]]:
        return batches(conversations, self.settings.batch_tokens, self.settings.steps + SPARE_TOKENS, choice)

    def _update(self, group: Sequence[StoredConversation]) -> None:
        done = self.elapsed / (60 * self.settings.minutes)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.settings.rate * schedule(done)
        scores = self._scores(group)
        if not scores[0].rows:
            return
        self.optimizer.zero_grad()
        weighted_loss(scores).backward()
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), 0.5)
        self.optimizer.step()
        self.updates += 1
        self.tokens_seen += sum(map(len, group))

    def _scores(self, group: Sequence[StoredConversation]) -> list[StepScore]:
        with torch.autocast(self.device.type, torch.bfloat16):
            scores: list[StepScore] = self.unroller(collate([each.load() for each in group], self.device))
        return scores

    def _report(self, held_out: Sequence[StoredConversation]) -> str:
        rates = self.agreement(held_out)
        report = {
            "minutes": round(self.elapsed / 60, 1),
            "updates": self.updates,
            "tokens": self.tokens_seen,
            "top1": [round(first, 4) for first, _ in rates],
            "top3": [round(third, 4) for _, third in rates],
            "chain": round(chain_length([first for first, _ in rates]), 3),
        }
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(report) + "\n")
        return json.dumps(report)

    @torch.no_grad()
    def agreement(self, conversations: Sequence[StoredConversation]) -> list[tuple[float, float]]:
        """Per unrolled step, how often the target's most probable token is the draft's first, and among its first three."""
        sums = torch.zeros(self.settings.steps, 3)
        for group in self._batches(conversations, random.Random(0)):
            sums += torch.tensor([(score.top1, score.top3, score.rows) for score in self._scores(group)])
        return [(float(first / max(1, count)), float(third / max(1, count))) for first, third, count in sums]

    def _save(self) -> None:
        state: dict[str, Any] = {
            "draft": self.draft.state_dict(),
            "tokens": self.draft.tokens,
            "optimizer": self.optimizer.state_dict(),
            "elapsed": self.elapsed,
            "updates": self.updates,
            "seen": self.tokens_seen,
        }
        partial = self.out / ".state.pt.partial"
        torch.save(state, partial)
        partial.replace(self.out / "state.pt")
        (self.out / "run.json").write_text(json.dumps(self.description, indent=1), encoding="utf-8")


def schedule(done: float) -> float:
    """Learning rate as a share of its peak, when the share ``done`` of the run is over."""
    if done < WARM_UP:
        return done / WARM_UP
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARM_UP) / (1 - WARM_UP))))
