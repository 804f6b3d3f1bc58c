"""Generated conversations equal those of transformers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from export.training.target import StepOutput
from export.training.words.generate import MIN_P, generate_conversations, sample
from export.training.words.segments import ANSWER, PROMPT, TEMPLATE, Plan, Segment
from tests.support.tiny import VOCAB, reference, tiny_model
from tests.support.training import torch_target


def decoded(model: Any, segments: list[Segment], stop: frozenset[int], capacity: int) -> tuple[list[int], list[int]]:
    """Tokens and kinds of a plan whose free segments transformers decodes greedily."""
    tokens: list[int] = []
    kinds: list[int] = []
    for index, each in enumerate(segments):
        new, last = list(each.given), index == len(segments) - 1
        while not each.given and len(tokens) + len(new) < capacity:
            token = int(reference(model, tokens + new)[0][-1].argmax())
            if not last if token in stop else len(new) == each.limit:
                break
            new.append(token)
            if token in stop:
                break
        tokens += new
        kinds += [each.kind] * len(new)
    return tokens[:capacity], kinds[:capacity]


def test_conversations_without_temperature_are_greedy_decoding(tmp_path: Path) -> None:
    """Also in slots that other conversations used before, and up to a slot's capacity."""
    choice = random.Random(5)
    model = tiny_model()
    target = torch_target(tmp_path, model, 3, 24)
    stop = frozenset(choice.sample(range(VOCAB), 30))

    def plans() -> Iterator[Plan]:
        for number in range(10**6):
            prompt = choice.choices(range(VOCAB), k=choice.randint(1, 6))
            segments = [Segment(TEMPLATE, [number % VOCAB]), Segment(PROMPT, prompt), Segment(ANSWER, limit=choice.randint(1, 12))]
            if number % 3 == 0:
                segments += [Segment(TEMPLATE, [7, 8]), Segment(PROMPT, limit=3), Segment(TEMPLATE, [9]), Segment(ANSWER, limit=6)]
            yield Plan(f"text {number}", segments)

    started: list[Plan] = []
    noted = (started.append(each) or each for each in plans())  # type: ignore[func-returns-value]
    found = list(islice(generate_conversations(target, noted, 3, stop, 0), 16))
    assert len({int(each.tokens[0]) for each in found}) == 16
    ended, filled = 0, 0
    for conversation in found:
        plan = started[int(conversation.tokens[0])]
        tokens, kinds = decoded(model, plan.segments, stop, 24)
        assert conversation.tokens.tolist() == tokens
        assert conversation.kinds.tolist() == kinds
        assert conversation.text == plan.text
        ended, filled = ended + (tokens[-1] in stop), filled + (len(tokens) == 24)
    assert min(ended, filled, 16 - ended) > 0  # every way to end occurs


def test_sampled_tokens_follow_min_p() -> None:
    """Proportional to the probabilities, without tokens far less probable than the best; the argmax at temperature 0."""
    logits = torch.tensor([0.0, 1.0, 3.0, 2.0, -2.0])
    target: Any = SimpleNamespace(head=torch.eye(5))
    generator = torch.Generator().manual_seed(0)
    temperatures = torch.tensor([0.0] * 10 + [0.8] * 20_000)
    sampled = sample(target, StepOutput(logits.expand(len(temperatures), -1), torch.empty(0)), temperatures, generator)
    assert sampled[:10].tolist() == [2] * 10
    weights = (logits / 0.8 - logits.max() / 0.8).exp()
    expected = weights * (weights >= MIN_P)
    assert (expected == 0).sum() == 2
    torch.testing.assert_close(sampled[10:].bincount(minlength=5) / 20_000, expected / expected.sum(), rtol=0, atol=0.015)
