"""How often the draft guesses what the target prefers, on conversations that it is not trained on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from .unroll import StepScore
from .words.corpus import Conversation

MOST = 120  # conversations of a report

Batches = Callable[[Sequence[Conversation], random.Random], Iterator[list[Conversation]]]


def choose_held_out(conversations: Sequence[Conversation]) -> list[Conversation]:
    """At most about MOST of them, the same number of every kind of text where there are as many."""
    kinds = sorted({each.text for each in conversations})
    each_kind = -(-MOST // max(1, len(kinds)))
    return [each for kind in kinds for each in [each for each in conversations if each.text == kind][:each_kind]]


@torch.no_grad()
def agreement(
    conversations: Sequence[Conversation],
    batches: Batches,
    scores: Callable[[Sequence[Conversation]], list[StepScore]],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Mapping[str, Tensor]:
    """Kind of text -> counts [steps, 3]: the target's most probable token was the draft's first, among its first three, and of how many.
    ``progress`` hears how many kinds are done, and of how many."""
    found: dict[str, Tensor] = {}
    kinds = sorted({each.text for each in conversations})
    for number, kind in enumerate(kinds):
        progress(number, len(kinds))
        groups = batches([each for each in conversations if each.text == kind], random.Random(0))
        counts = [torch.tensor([(score.top1, score.top3, score.asked) for score in scores(group)]) for group in groups]
        if counts:
            found[kind] = torch.stack(counts).sum(0)
    return found


def comparable(history: Sequence[Mapping[str, Any]], question: str | None) -> list[float]:
    """The chains of the last reports, as far back as they asked the same ``question``, in order."""
    return [each["chain"] for each in takewhile(lambda each: each.get("question") == question, reversed(history))][::-1]


def rates_of(counts: Tensor | int) -> list[tuple[float, float]]:
    """Of each step: how often the first guess was right, and one of the first three."""
    return [(first / max(1, rows), third / max(1, rows)) for first, third, rows in torch.as_tensor(counts).tolist()]


def chain_length(rates: Sequence[float]) -> float:
    """Expected tokens per cycle of a greedy chain, the bonus token included. ``rates``: acceptance rate of each step."""
    length, reached = 1.0, 1.0
    for rate in rates:
        reached *= rate
        length += reached
    return length
