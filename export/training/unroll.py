"""The training-time test of EAGLE-3 (arXiv 2503.01840): the draft is unrolled over its own features, and the target's
distribution is the soft label of every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .draft import Angles, TorchDraft, UnrolledCache
from .segments import ANSWER
from .shards import Conversation

CHUNK = 256  # rows of logits in memory at a time
DECAY = 0.8  # weight of step i is DECAY**i (EAGLE-3's code)


@dataclass(frozen=True)
class Batch:
    """Conversations side by side, padded at the end."""

    tokens: Tensor  # [B, S] int64
    answer: Tensor  # [B, S] bool: a token of an answer, no padding
    captures: Tensor  # [B, S, 3H]
    final: Tensor  # [B, S, H]


def collate(conversations: Sequence[Conversation], device: torch.device) -> Batch:
    """Pad to the longest."""

    def padded(parts: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).to(device)

    return Batch(
        tokens=padded([each.tokens.long() for each in conversations]),
        answer=padded([each.kinds == ANSWER for each in conversations]),
        captures=padded([each.captures for each in conversations]),
        final=padded([each.final for each in conversations]),
    )


@dataclass(frozen=True)
class StepScore:
    """Of one unrolled step: the summed loss, and of ``rows`` predictions, how often the target's most probable token was the draft's first
    (``top1``) or among its first three (``top3``)."""

    loss: Tensor
    rows: int
    top1: int
    top3: int


class Unroller:
    """Runs the draft over a batch as it will run when it drafts a chain of tokens."""

    def __init__(self, draft: TorchDraft, embedding: Tensor, head: Tensor, cos: Tensor, sin: Tensor, steps: int) -> None:
        self.draft, self.embedding, self.head, self.steps = draft, embedding, head, steps
        self.cos, self.sin = cos, sin
        self.draft_head = head[draft.tokens]  # the target's head over the draft's vocabulary
        self.draft_id = torch.full((len(head),), -1, dtype=torch.long, device=head.device)
        self.draft_id[draft.tokens] = torch.arange(len(draft.tokens), device=head.device)

    def __call__(self, batch: Batch) -> list[StepScore]:
        """Row t pairs the feature of position t with token t + 1 and predicts token t + 2; step i does so i positions later.

        A row counts if the predicted token belongs to an answer and the target's most probable token is in the draft's vocabulary. Only
        rows whose first prediction belongs to an answer are unrolled.
        """
        draft, layer, steps = self.draft, self.draft.midlayer, self.steps
        length = batch.tokens.shape[1]
        answer = torch.nn.functional.pad(batch.answer, (0, steps + 2))
        tokens = torch.nn.functional.pad(batch.tokens, (0, steps + 2))
        rows, real = self._rows(answer[:, 2 : 2 + length])
        base = draft.fc(batch.captures)
        everywhere = torch.arange(length, device=base.device)[None]
        cache = UnrolledCache(
            *layer.keys_values(layer.joined(self.embedding[tokens[:, 1 : 1 + length]], base), self._angles(everywhere)), rows
        )
        feature = base.gather(1, rows[..., None].expand(-1, -1, base.shape[-1]))
        label_rows, distributions, best = self._labels(batch)
        label_rows = torch.nn.functional.pad(label_rows, (0, steps + 2), value=-1)
        scores = []
        for step in range(steps):
            feature = layer(self.embedding[tokens.gather(1, rows + step + 1)], feature, cache, self._angles(rows + step))
            label = label_rows.gather(1, rows + step + 1)
            counts = (label >= 0) & real
            label = label[counts]
            normed = draft.norm(feature)[counts]
            loss, ranks = SoftCrossEntropy.apply(normed, draft.lm_head.weight, distributions, label, best)
            scores.append(StepScore(loss, len(label), int((ranks < 1).sum()), int((ranks < 3).sum())))
        return scores

    def _angles(self, positions: Tensor) -> Angles:
        return self.cos[positions][:, :, None], self.sin[positions][:, :, None]

    def _rows(self, answer: Tensor) -> tuple[Tensor, Tensor]:
        """(positions [B, R] that are unrolled, which of them are real): conversations with fewer than R of them are filled up."""
        most = int(answer.sum(-1).max())
        rows = (~answer).to(torch.int8).argsort(dim=-1, stable=True)[:, :most]
        return rows, answer.gather(1, rows)

    @torch.no_grad()
    def _labels(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of L positions before answer tokens: (their label's row [B, S], or -1; the target's distributions over the draft's vocabulary
        [L, Vd]; the target's most probable tokens [L], as ids of the draft)."""
        wanted = batch.answer.roll(-1, 1)
        wanted[:, -1] = False
        final = batch.final[wanted]
        best = torch.cat([self.draft_id[(part @ self.head.T).argmax(-1)] for part in final.split(CHUNK)])
        kept = best >= 0
        rows = torch.full(batch.tokens.shape, -1, dtype=torch.long, device=final.device)
        rows[wanted] = torch.where(kept, kept.cumsum(0) - 1, -1)
        soft = torch.cat([(part @ self.draft_head.T).float().softmax(-1).to(final.dtype) for part in final[kept].split(CHUNK)])
        return rows, soft, best[kept]


class SoftCrossEntropy(torch.autograd.Function):
    """Head and loss together, a few rows at a time, so that the logits of all rows are never in memory at once."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor, weight: Tensor, distributions: Tensor, label: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
        """feature [R, H], weight [Vd, H], distributions [L, Vd], label [R] rows of them, best [L].
        Returns the summed loss, and the rank [R] that the draft gives to the target's most probable token, from 0."""
        small = weight.to(feature.dtype)
        by_feature, by_weight = torch.empty_like(feature), torch.zeros_like(weight, dtype=torch.float32)
        loss, ranks = torch.zeros((), device=feature.device), []
        for start in range(0, len(feature), CHUNK):
            part, rows = feature[start : start + CHUNK], label[start : start + CHUNK]
            logits = (part @ small.T).float()
            ranks.append((logits > logits.gather(1, best[rows][:, None])).sum(-1))
            target = distributions[rows].float()
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


def weighted_loss(scores: Sequence[StepScore]) -> Tensor:
    """The loss to minimize: the mean over each step's rows, weighted by step and summed."""
    parts = [score.loss / max(1, score.rows) * DECAY**step for step, score in enumerate(scores)]
    return torch.stack(parts).sum()


def chain_length(rates: Sequence[float]) -> float:
    """Expected tokens per cycle of a greedy chain, the bonus token included. ``rates``: acceptance rate of each step."""
    length, reached = 1.0, 1.0
    for rate in rates:
        reached *= rate
        length += reached
    return length
