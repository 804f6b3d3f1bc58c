"""What the draft is to learn at a position, and the cross-entropy to it together with the head.

soft: the target's distribution (EAGLE-3). hard: its most probable token. top-k: its distribution over its TOP_K most probable tokens.
acceptance: as soft, but a row counts in a step as much as it is probable that a chain gets there, the product over the steps before of
sum(min(target, draft)), which is the rate at which sampling accepts (arXiv 2211.17192, section 3.3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TOP_K = 10
CHUNK = 256  # rows of logits in memory at a time


def wanted_distributions(loss: str, logits: Tensor, best: Tensor) -> Tensor:
    """The labels [L, Vd]. ``logits`` [L, Vd] are the target's over the draft's vocabulary, ``best`` [L] its most probable tokens."""
    if loss == "hard":
        return F.one_hot(best, logits.shape[-1])
    if loss == "top-k":
        least = logits.topk(min(TOP_K, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return logits.softmax(-1)


class CrossEntropy(torch.autograd.Function):
    """Head and loss together, a few rows at a time, so that the logits of all rows are never in memory at once."""

    @staticmethod
    def forward(
        ctx: Any, feature: Tensor, weight: Tensor, distributions: Tensor, label: Tensor, best: Tensor, row_weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """feature [R, H], weight [Vd, H], distributions [L, Vd], label [R] rows of them, best [L], row_weight [R] or all ones.
        Returns the summed loss, the rank [R] that the draft gives to the target's most probable token, from 0, and with row weights the
        rate [R] at which sampling accepts."""
        small = weight.to(feature.dtype)
        by_feature, by_weight = torch.empty_like(feature), torch.zeros_like(weight, dtype=torch.float32)
        loss, ranks = torch.zeros((), device=feature.device), torch.empty_like(label)
        accepted = torch.empty(len(label) if row_weight is not None else 0, device=feature.device)
        for start in range(0, len(feature), CHUNK):
            chunk = slice(start, start + CHUNK)
            part, rows = feature[chunk], label[chunk]
            logits = (part @ small.T).float()
            ranks[chunk] = (logits > logits.gather(1, best[rows][:, None])).sum(-1)
            target = distributions[rows].float()
            peak = logits.amax(-1, keepdim=True)
            losses = -torch.linalg.vecdot(target, logits)
            weights = logits.sub_(peak).exp_()
            mass = weights.sum(-1, keepdim=True)
            losses += (mass.log() + peak)[:, 0]
            draft = weights.div_(mass)
            if row_weight is not None:
                accepted[chunk] = torch.minimum(draft, target).sum(-1)
            slope = draft.sub_(target)
            if row_weight is not None:
                losses *= row_weight[chunk]
                slope *= row_weight[chunk, None]
            loss += losses.sum()
            slope = slope.to(feature.dtype)
            by_feature[chunk] = slope @ small
            by_weight += slope.T @ part
        ctx.save_for_backward(by_feature, by_weight)
        ctx.mark_non_differentiable(ranks, accepted)
        return loss, ranks, accepted

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor, *_: Tensor) -> Any:
        by_feature, by_weight = ctx.saved_tensors
        return by_feature * by_loss.to(by_feature.dtype), by_weight * by_loss, None, None, None, None
