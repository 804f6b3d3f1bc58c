"""Generates training conversations: the target writes many side by side.

A draft learns best from the text that it will have to predict, which is the target's own (EAGLE-3, section 4). Every slot of the batch
follows a plan of segments; a slot whose conversation is finished begins the next one, so the batch stays full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..target import StepOutput, TorchTarget
from .corpus import Conversation
from .segments import Plan, Segment

MIN_P = 0.05  # min-p sampling: needs no sorting, and excludes unlikely tokens, from which a small model does not recover


@dataclass
class RunningConversation:
    """A conversation under way: the segments to come, and the tokens so far with their kinds."""

    text: str
    segments: list[Segment]
    written: int = 0
    tokens: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)

    @property
    def temperature(self) -> float:
        """Of the next token."""
        return self.segments[0].temperature if self.segments else 0.0

    def next_token(self, proposed: int, stop: frozenset[int]) -> int | None:
        """The next token, where ``proposed`` is what the target would write. None when the conversation is finished."""
        while self.segments:
            segment = self.segments[0]
            ends = not segment.given and (proposed in stop or self.written == segment.limit)
            if ends and (len(self.segments) > 1 or proposed not in stop):
                self._next_segment()
                continue
            # The stop token of the last answer is kept: the draft has to predict it, too.
            token = segment.given[self.written] if segment.given else proposed
            self.written += 1
            self.tokens.append(token)
            self.kinds.append(segment.kind)
            if ends or self.written == len(segment.given):
                self._next_segment()
            return token
        return None

    def take_given(self, most: int) -> None:
        """Take at most ``most`` of the tokens that are given before the first one that the target writes."""
        while self.segments and self.segments[0].given and len(self.tokens) < most:
            self.next_token(0, frozenset())

    def finished(self) -> Conversation:
        """What was written."""
        return Conversation(np.array(self.tokens, np.int32), np.array(self.kinds, np.uint8), self.text)

    def _next_segment(self) -> None:
        self.segments, self.written = self.segments[1:], 0


def generate_conversations(
    target: TorchTarget,
    plans: Iterator[Plan],
    batch: int,
    stop: frozenset[int],
    seed: int,
    under_way: Callable[[int], None] = lambda _: None,
) -> Iterator[Conversation]:
    """Run ``batch`` conversations side by side without end; yields each when it is finished or has ``target.capacity`` tokens.
    ``under_way`` hears before every step how many tokens the unfinished ones have."""
    device = target.cache.device
    generator = torch.Generator(device).manual_seed(seed)

    def begun(slot: int) -> RunningConversation:
        plan = next(plans)
        conversation = RunningConversation(plan.text, plan.segments)
        conversation.take_given(target.capacity)
        if len(conversation.tokens) > 1:  # the last one is the first step's
            target.begin(slot, torch.tensor(conversation.tokens[:-1], device=device))
        return conversation

    running = [begun(slot) for slot in range(batch)]
    while True:
        tokens = torch.tensor([conversation.tokens[-1] for conversation in running], device=device)
        lengths = torch.tensor([len(conversation.tokens) - 1 for conversation in running])
        under_way(int(lengths.sum()))
        step = target.step(tokens, lengths.to(device), int(lengths.max()) + 1)
        temperatures = torch.tensor([conversation.temperature for conversation in running], device=device)
        proposed = sample(target, step, temperatures, generator).tolist()
        for slot, conversation in enumerate(running):
            full = len(conversation.tokens) == target.capacity
            if full or conversation.next_token(proposed[slot], stop) is None:
                yield conversation.finished()
                running[slot] = begun(slot)


@torch.inference_mode()
def sample(target: TorchTarget, step: StepOutput, temperatures: Tensor, generator: torch.Generator) -> Tensor:
    """Next tokens [B]: argmax where the temperature is 0, min-p sampling elsewhere."""
    logits = step.final @ target.head.T
    tokens = logits.max(-1).indices  # a third of the time of argmax in bfloat16
    sampled = temperatures.nonzero()[:, 0]
    if len(sampled):
        scaled = logits[sampled].float() / temperatures[sampled, None]
        scaled -= scaled.amax(-1, keepdim=True)
        weights = scaled.exp_()
        weights[weights < MIN_P] = 0  # relative to the most probable token, whose weight is 1
        # By the distribution function: multinomial draws a number for every token of the vocabulary, a fifth of a step's time.
        below = weights.cumsum(-1)
        drawn = (1 - torch.rand(len(sampled), 1, device=logits.device, generator=generator)) * below[:, -1:]
        tokens[sampled] = torch.searchsorted(below, drawn)[:, 0]
    return tokens
