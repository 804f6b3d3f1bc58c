"""Generates training conversations: the target writes many side by side, and its hidden states are recorded.

A draft learns best from the text that it will have to predict, which is the target's own (EAGLE-3, section 4). Every slot of the batch
follows a plan of segments; a slot whose conversation is finished begins the next one, so the batch stays full.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .segments import Segment
from .shards import Conversation
from .target import StepOutput, TorchTarget

MIN_P = 0.05  # min-p sampling: needs no sorting, and excludes unlikely tokens, from which a small model does not recover


@dataclass
class RunningConversation:
    """A conversation under way: the segments to come, and the tokens so far with their kinds."""

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

    def _next_segment(self) -> None:
        self.segments, self.written = self.segments[1:], 0


def generate_conversations(
    target: TorchTarget, plans: Iterator[list[Segment]], batch: int, stop: frozenset[int], seed: int
) -> Iterator[Conversation]:
    """Run ``batch`` conversations side by side without end; yields each when it is finished or has ``target.capacity`` tokens."""
    device = target.cache.device
    generator = torch.Generator(device).manual_seed(seed)
    running = [RunningConversation(next(plans)) for _ in range(batch)]
    proposed = [0] * batch
    captures = torch.zeros(batch, target.capacity, 3 * target.arch.hidden, dtype=target.cache.dtype)
    final = torch.zeros(batch, target.capacity, target.arch.hidden, dtype=target.cache.dtype)
    rows = torch.arange(batch)
    while True:
        tokens: list[int] = []
        for slot, conversation in enumerate(running):
            token = None
            if len(conversation.tokens) < target.capacity:
                token = conversation.next_token(proposed[slot], stop)
            if token is None:
                n = len(conversation.tokens)
                yield Conversation(
                    torch.tensor(conversation.tokens, dtype=torch.int32),
                    torch.tensor(conversation.kinds, dtype=torch.uint8),
                    captures[slot, :n].clone(),
                    final[slot, :n].clone(),
                )
                running[slot] = RunningConversation(next(plans))
                token = running[slot].next_token(0, stop)
            assert token is not None  # every plan begins with the template
            tokens.append(token)
        lengths = torch.tensor([len(conversation.tokens) - 1 for conversation in running])
        step = target.step(torch.tensor(tokens, device=device), lengths.to(device), int(lengths.max()) + 1)
        captures[rows, lengths] = step.captures.cpu()
        final[rows, lengths] = step.final.cpu()
        temperatures = torch.tensor([conversation.temperature for conversation in running], device=device)
        proposed = sample(target, step, temperatures, generator).tolist()


@torch.inference_mode()
def sample(target: TorchTarget, step: StepOutput, temperatures: Tensor, generator: torch.Generator) -> Tensor:
    """Next tokens [B]: argmax where the temperature is 0, min-p sampling elsewhere."""
    logits = step.final @ target.head.T
    tokens = logits.argmax(-1)
    sampled = temperatures.nonzero()[:, 0]
    if len(sampled):
        scaled = logits[sampled].float() / temperatures[sampled, None]
        scaled -= scaled.amax(-1, keepdim=True)
        weights = scaled.exp_()
        weights[weights < MIN_P] = 0  # relative to the most probable token, whose weight is 1
        tokens[sampled] = weights.multinomial(1, generator=generator)[:, 0]
    return tokens
