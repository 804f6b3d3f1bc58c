"""The training-time test of EAGLE-3 (arXiv 2503.01840): the draft is unrolled over its own features, and the target's
distribution is the soft label of every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .draft import Angles, TorchDraft, UnrolledCache
from .losses import CHUNK, CrossEntropy, wanted_distributions
from .names import ACCEPTANCE
from .target import StepOutput
from .words.corpus import Conversation
from .words.segments import ANSWER

DECAY = 0.8  # weight of step i is DECAY**i (EAGLE-3's code)
_NO_ANSWER, _UNKNOWN = -1, -2  # in place of a label's row: no answer's token follows, or one that the draft does not know


@dataclass(frozen=True)
class Batch:
    """Conversations side by side, padded at the end."""

    tokens: Tensor  # [B, S] int64
    answer: Tensor  # [B, S] bool: a token of an answer, no padding
    captures: Tensor  # [B, S, 3H]
    final: Tensor  # [B, S, H]


StatesOf = Callable[[Sequence[Conversation], Tensor], StepOutput]
"""What the target computes at conversations, whose tokens [B, S] are padded."""


def collate(conversations: Sequence[Conversation], states: StatesOf, device: torch.device) -> Batch:
    """Pad to the longest."""

    def padded(parts: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).to(device)

    tokens = padded([torch.from_numpy(each.tokens).long() for each in conversations])
    answer = padded([torch.from_numpy(each.kinds == ANSWER) for each in conversations])
    final, captures = states(conversations, tokens)
    return Batch(tokens, answer, captures, final)


@dataclass(frozen=True)
class StepScore:
    """Of one unrolled step: the summed loss over ``rows`` predictions; and of ``asked`` predictions, those whose right token the draft does
    not know included, how often the target's most probable token was the draft's first (``top1``) or among its first three (``top3``)."""

    loss: Tensor
    rows: int
    asked: int
    top1: int
    top3: int


class Unroller:
    """Runs the draft over a batch as it will run when it drafts a chain of tokens."""

    def __init__(
        self, draft: TorchDraft, embedding: Tensor, head: Tensor, cos: Tensor, sin: Tensor, steps: int, loss: str = "soft"
    ) -> None:
        """``loss``: one of names.LOSSES."""
        self.draft, self.embedding, self.head, self.steps, self.loss = draft, embedding, head, steps, loss
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
        base = draft.fuse(batch.captures)
        everywhere = torch.arange(length, device=base.device)[None]
        cache = UnrolledCache(
            *layer.keys_values(layer.joined(self.embedding[tokens[:, 1 : 1 + length]], base), self._angles(everywhere)), rows
        )
        feature = base.gather(1, rows[..., None].expand(-1, -1, base.shape[-1]))
        label_rows, distributions, best = self._labels(batch)
        label_rows = torch.nn.functional.pad(label_rows, (0, steps + 2), value=_NO_ANSWER)
        reached = torch.ones(rows.shape, device=base.device)  # how probably a chain gets as far as this step
        scores = []
        for step in range(steps):
            feature = layer(self.embedding[tokens.gather(1, rows + step + 1)], feature, cache, self._angles(rows + step))
            label = label_rows.gather(1, rows + step + 1)
            counts, asked = (label >= 0) & real, (label != _NO_ANSWER) & real
            label = label[counts]
            normed = draft.norm(feature)
            weight = reached[counts] if self.loss == ACCEPTANCE else None
            loss, ranks, accepted = CrossEntropy.apply(normed[counts], draft.lm_head.weight, distributions, label, best, weight)
            if weight is not None:
                reached[counts] = weight * accepted
            scores.append(StepScore(loss, len(label), int(asked.sum()), int((ranks < 1).sum()), int((ranks < 3).sum())))
            feature = normed if draft.shape.norm_output else feature
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
        """Of L positions before answer tokens: (their label's row [B, S], _UNKNOWN or _NO_ANSWER; the distributions over the draft's
        vocabulary that are wanted [L, Vd]; the target's most probable tokens [L], as ids of the draft)."""
        wanted = batch.answer.roll(-1, 1)
        wanted[:, -1] = False
        final = batch.final[wanted]
        best = torch.cat([self.draft_id[(part @ self.head.T).max(-1).indices] for part in final.split(CHUNK)])
        kept = best >= 0
        rows = torch.full(batch.tokens.shape, _NO_ANSWER, dtype=torch.long, device=final.device)
        rows[wanted] = torch.where(kept, kept.cumsum(0) - 1, _UNKNOWN)
        chosen = zip(final[kept].split(CHUNK), best[kept].split(CHUNK), strict=True)
        parts = [wanted_distributions(self.loss, (part @ self.draft_head.T).float(), first).to(final.dtype) for part, first in chosen]
        return rows, torch.cat(parts) if parts else final.new_zeros(0, len(self.draft_head)), best[kept]


def weighted_loss(scores: Sequence[StepScore], loss: str = "soft") -> Tensor:
    """The loss to minimize: the mean over each step's rows, weighted by step and summed. Rows of the loss "acceptance" have their weights
    already."""
    decay = 1.0 if loss == ACCEPTANCE else DECAY
    parts = [score.loss / max(1, score.rows) * decay**step for step, score in enumerate(scores)]
    return torch.stack(parts).sum()
