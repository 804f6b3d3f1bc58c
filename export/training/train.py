"""Training-time test: the draft is unrolled over its own features, with the target's distribution as soft label at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .draft import Angles, DraftKeysAndValues, TorchDraft
from .shards import Conversation
from .words import ANSWER

CHUNK = 256  # rows of logits in memory at a time
DECAY = 0.8  # weight of step i is DECAY**i (EAGLE-3's code)


@dataclass(frozen=True)
class Batch:
    """Conversations side by side, padded at the end."""

    tokens: Tensor  # [B, S] int64
    counted: Tensor  # [B, S] bool: an answer's token, inside the text
    captures: Tensor  # [B, S, 3H]
    final: Tensor  # [B, S, H]


def collate(conversations: Sequence[Conversation], device: torch.device) -> Batch:
    """Pad to the longest."""

    def padded(parts: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).to(device)

    return Batch(
        tokens=padded([each.tokens.long() for each in conversations]),
        counted=padded([each.kinds == ANSWER for each in conversations]),
        captures=padded([each.captures for each in conversations]),
        final=padded([each.final for each in conversations]),
    )


@dataclass(frozen=True)
class StepScore:
    """Of one unrolled step: summed loss, and how many of ``rows`` targets were the draft's first or among its first three guesses."""

    loss: Tensor
    rows: int
    top1: int
    top3: int


class Unroller:
    """Runs the draft over a batch as it will run in a chain of drafted tokens."""

    def __init__(self, draft: TorchDraft, embedding: Tensor, head: Tensor, cos: Tensor, sin: Tensor, steps: int) -> None:
        self.draft, self.embedding, self.head, self.steps = draft, embedding, head, steps
        self.cos, self.sin = cos, sin
        self.small_head = head[draft.tokens]
        self.place = torch.full((len(head),), -1, dtype=torch.long, device=head.device)
        self.place[draft.tokens] = torch.arange(len(draft.tokens), device=head.device)

    def __call__(self, batch: Batch) -> list[StepScore]:
        """Row t pairs the feature of position t with token t + 1 and guesses token t + 2; step i does so i positions later.

        A row counts where the guessed token belongs to an answer and the target's own favourite is in the draft's vocabulary. Only rows
        whose first guess belongs to an answer are unrolled.
        """
        draft, layer, steps = self.draft, self.draft.midlayer, self.steps
        length = batch.tokens.shape[1]
        counted = torch.nn.functional.pad(batch.counted, (0, steps + 2))
        tokens = torch.nn.functional.pad(batch.tokens, (0, steps + 2))
        rows, real = self._rows(counted[:, 2 : 2 + length])
        base = draft.fc(batch.captures)
        everywhere = torch.arange(length, device=base.device)[None]
        memory = DraftKeysAndValues(
            *layer.keys_values(layer.joined(self.embedding[tokens[:, 1 : 1 + length]], base), self._angles(everywhere)), rows
        )
        feature = base.gather(1, rows[..., None].expand(-1, -1, base.shape[-1]))
        where, wanted, best = self._labels(batch)
        where = torch.nn.functional.pad(where, (0, steps + 2), value=-1)
        scores = []
        for step in range(steps):
            feature = layer(self.embedding[tokens.gather(1, rows + step + 1)], feature, memory, self._angles(rows + step))
            label = where.gather(1, rows + step + 1)
            counts = (label >= 0) & real
            label = label[counts]
            normed = draft.norm(feature)[counts]
            loss, ranks = SoftCrossEntropy.apply(normed, draft.lm_head.weight, wanted, label, best)
            scores.append(StepScore(loss, len(label), int((ranks < 1).sum()), int((ranks < 3).sum())))
        return scores

    def _angles(self, positions: Tensor) -> Angles:
        return self.cos[positions][:, :, None], self.sin[positions][:, :, None]

    def _rows(self, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [B, R] that count in step 0, filled up with others where a conversation has less than the most, and which are real."""
        most = int(counted.sum(-1).max())
        rows = (~counted).to(torch.int8).argsort(dim=-1, stable=True)[:, :most]
        return rows, counted.gather(1, rows)

    @torch.no_grad()
    def _labels(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(where [B, S]: a position's row below, or -1; the target's distributions over the draft's tokens [L, Vd]; its favourites [L])"""
        wanted = batch.counted.roll(-1, 1)
        wanted[:, -1] = False
        final = batch.final[wanted]
        best = torch.cat([self.place[(part @ self.head.T).argmax(-1)] for part in final.split(CHUNK)])
        kept = best >= 0
        where = torch.full(batch.tokens.shape, -1, dtype=torch.long, device=final.device)
        where[wanted] = torch.where(kept, kept.cumsum(0) - 1, -1)
        soft = torch.cat([(part @ self.small_head.T).float().softmax(-1).to(final.dtype) for part in final[kept].split(CHUNK)])
        return where, soft, best[kept]


class SoftCrossEntropy(torch.autograd.Function):
    """Head and loss in one, a few rows at a time: the [rows, Vd] logits are never all in memory, and each pass over them stays in cache."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor, weight: Tensor, wanted: Tensor, label: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
        """feature [R, H], weight [Vd, H], wanted [L, Vd] probabilities, label [R] rows of it, best [L].
        Returns the summed loss and how many guesses the draft puts before the target's favourite, [R]."""
        small = weight.to(feature.dtype)
        by_feature, by_weight = torch.empty_like(feature), torch.zeros_like(weight, dtype=torch.float32)
        loss, ranks = torch.zeros((), device=feature.device), []
        for start in range(0, len(feature), CHUNK):
            part, rows = feature[start : start + CHUNK], label[start : start + CHUNK]
            logits = (part @ small.T).float()
            ranks.append((logits > logits.gather(1, best[rows][:, None])).sum(-1))
            target = wanted[rows].float()
            peak = logits.amax(-1, keepdim=True)
            loss -= torch.dot(target.view(-1), logits.view(-1))
            weights = logits.sub_(peak).exp_()
            mass = weights.sum(-1, keepdim=True)
            loss += (mass.log() + peak).sum()
            slope = weights.div_(mass).sub_(target).to(feature.dtype)
            by_feature[start : start + CHUNK] = slope @ small
            by_weight += slope.T @ part
        ctx.save_for_backward(by_feature, by_weight)
        result = torch.cat(ranks) if ranks else label
        ctx.mark_non_differentiable(result)
        return loss, result

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor, by_ranks: Tensor) -> Any:
        by_feature, by_weight = ctx.saved_tensors
        return by_feature * by_loss.to(by_feature.dtype), by_weight * by_loss, None, None, None


def total(scores: Sequence[StepScore]) -> Tensor:
    """The loss to descend: a weighted mean over steps."""
    parts = [score.loss / max(1, score.rows) * DECAY**step for step, score in enumerate(scores)]
    return torch.stack(parts).sum()


def chain_length(rates: Sequence[float]) -> float:
    """Tokens per cycle of a greedy chain as long as ``rates``, bonus included."""
    length, alive = 1.0, 1.0
    for rate in rates:
        alive *= rate
        length += alive
    return length
