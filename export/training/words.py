"""The target's own words: whole conversations, the user's part included, written by the target in one batched run.

A draft learns best from what it will have to guess (EAGLE-3 section 4: regenerated answers). Every slot of the batch works through a
script of forced and free stretches of its own; a slot that is done begins the next conversation, so the batch stays full.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from runtime.text.tokenizer import Tokenizer

from .openings import Opening
from .shards import Conversation
from .target import Step, TorchTarget

MARK = "\x07mark\x07"
FORCED, PROMPT, ANSWER = 0, 1, 2
MIN_P = 0.05  # min-p sampling: no sorting of the vocabulary, and no tail that a small model cannot come back from


@dataclass(frozen=True)
class Frame:
    """Token ids of the chat template around a user turn, an answer and the next user turn."""

    before: list[int]
    between: list[int]
    after: list[int]
    stop: frozenset[int]


def frame_of(text: Tokenizer, stop: Sequence[int]) -> Frame:
    """Cut the chat template apart by rendering it with marks in place of the texts."""

    def ids(piece: str) -> list[int]:
        return list(text.encode_raw(piece))

    turns = [{"role": role, "content": MARK} for role in ("user", "assistant", "user")]
    before, to_answer = text.render(turns[:1]).split(MARK)
    _, _, to_user, _ = text.render(turns).split(MARK)
    return Frame(ids(before), ids(to_user), ids(to_answer), frozenset(stop))


@dataclass(frozen=True)
class Stretch:
    """Part of a conversation: ``forced`` tokens, or up to ``limit`` tokens written at ``temperature``."""

    kind: int
    forced: list[int] = field(default_factory=list)
    limit: int = 0
    temperature: float = 0.0


def script(opening: Opening, text: Tokenizer, frame: Frame, choice: random.Random) -> list[Stretch]:
    """One conversation: user turn, answer, and in one of four a second round. Most answers greedy, as most serving is."""
    temperature = choice.choices((0.0, 0.7, 1.0), (65, 20, 15))[0]
    user = [Stretch(PROMPT, text.encode_raw(opening.text))]
    if opening.open:
        user.append(Stretch(PROMPT, limit=choice.choice((24, 48, 96, 192)), temperature=1.0))
    answer = [Stretch(FORCED, frame.after), Stretch(ANSWER, limit=choice.choice((96, 192, 320)), temperature=temperature)]
    stretches = [Stretch(FORCED, frame.before), *user, *answer]
    if choice.random() < 0.25:
        stretches += [Stretch(FORCED, frame.between), Stretch(PROMPT, limit=48, temperature=1.0), *answer]
    return stretches


@dataclass
class Talk:
    """A conversation under way: what was fed so far, and what is to come."""

    stretches: list[Stretch]
    written: int = 0
    tokens: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)

    @property
    def temperature(self) -> float:
        return self.stretches[0].temperature if self.stretches else 0.0

    def next_token(self, proposed: int, stop: frozenset[int]) -> int | None:
        """The token to feed next, given what the target would write; None when the conversation is over."""
        while self.stretches:
            now = self.stretches[0]
            ends = not now.forced and (proposed in stop or self.written == now.limit)
            if ends and (len(self.stretches) > 1 or proposed not in stop):
                self._forward()
                continue
            # The stop token of a last answer is fed: it, too, is to be guessed.
            token = now.forced[self.written] if now.forced else proposed
            self.written += 1
            self.tokens.append(token)
            self.kinds.append(now.kind)
            if ends or self.written == len(now.forced):
                self._forward()
            return token
        return None

    def _forward(self) -> None:
        self.stretches, self.written = self.stretches[1:], 0


def converse(
    target: TorchTarget, conversations: Iterator[list[Stretch]], batch: int, stop: frozenset[int], seed: int
) -> Iterator[Conversation]:
    """Run ``batch`` conversations side by side for ever; yields each when it is finished or fills its slot."""
    device = target.cache.device
    generator = torch.Generator(device).manual_seed(seed)
    live = [Talk(next(conversations)) for _ in range(batch)]
    proposed = [0] * batch
    captures = torch.zeros(batch, target.capacity, 3 * target.arch.hidden, dtype=target.cache.dtype)
    final = torch.zeros(batch, target.capacity, target.arch.hidden, dtype=target.cache.dtype)
    rows = torch.arange(batch)
    while True:
        feed: list[int] = []
        for slot, conversation in enumerate(live):
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
                live[slot] = Talk(next(conversations))
                token = live[slot].next_token(0, stop)
            assert token is not None  # every script begins with the template
            feed.append(token)
        lengths = torch.tensor([len(conversation.tokens) - 1 for conversation in live])
        step = target.step(torch.tensor(feed, device=device), lengths.to(device), int(lengths.max()) + 1)
        captures[rows, lengths] = step.captures.cpu()
        final[rows, lengths] = step.final.cpu()
        temperatures = torch.tensor([conversation.temperature for conversation in live], device=device)
        proposed = choose(target, step, temperatures, generator).tolist()


@torch.inference_mode()
def choose(target: TorchTarget, step: Step, temperatures: Tensor, generator: torch.Generator) -> Tensor:
    """Next tokens [B]: argmax where the temperature is 0, min-p sampling elsewhere."""
    logits = step.final @ target.head.T
    tokens = logits.argmax(-1)
    warm = temperatures.nonzero()[:, 0]
    if len(warm):
        scaled = logits[warm].float() / temperatures[warm, None]
        scaled -= scaled.amax(-1, keepdim=True)
        weights = scaled.exp_()
        weights[weights < MIN_P] = 0  # relative to the most probable token, whose weight is 1
        tokens[warm] = weights.multinomial(1, generator=generator)[:, 0]
    return tokens
