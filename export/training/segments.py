"""The plan of a training conversation: segments of given tokens and of tokens that the target writes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.text.tokenizer import Tokenizer

from .seed_prompts import SeedPrompt

TEMPLATE, PROMPT, ANSWER = 0, 1, 2
"""Kinds of tokens: of the chat template, of a user turn, of an answer."""

PLACEHOLDER = "\x07text\x07"


@dataclass(frozen=True)
class TemplateTokens:
    """Token ids of the chat template before a user turn, after it, and between an answer and the next user turn; and the stop tokens."""

    before_user: list[int]
    after_user: list[int]
    after_answer: list[int]
    stop: frozenset[int]

    @property
    def end(self) -> int:
        """The stop token that the template puts behind an answer; without one, the lowest."""
        return next((token for token in self.after_answer if token in self.stop), min(self.stop))


def template_tokens(text: Tokenizer, stop: Sequence[int]) -> TemplateTokens:
    """Render the chat template with placeholders for the texts, and encode what is between them."""

    def encode(part: str) -> list[int]:
        return list(text.encode_raw(part))

    turns = [{"role": role, "content": PLACEHOLDER} for role in ("user", "assistant", "user")]
    before_user, after_user = text.render(turns[:1]).split(PLACEHOLDER)
    _, _, after_answer, _ = text.render(turns).split(PLACEHOLDER)
    return TemplateTokens(encode(before_user), encode(after_user), encode(after_answer), frozenset(stop))


@dataclass(frozen=True)
class Segment:
    """Part of a conversation: the tokens ``given``, or up to ``limit`` tokens that the target writes at ``temperature``."""

    kind: int
    given: list[int] = field(default_factory=list)
    limit: int = 0
    temperature: float = 0.0


def plan_conversation(seed: SeedPrompt, text: Tokenizer, template: TemplateTokens, choice: random.Random) -> list[Segment]:
    """A user turn and an answer, and in one of four conversations a second round. Most answers are greedy, as in most serving."""
    temperature = choice.choices((0.0, 0.7, 1.0), (65, 20, 15))[0]
    user = [Segment(PROMPT, text.encode_raw(seed.text))]
    if not seed.complete:
        user.append(Segment(PROMPT, limit=choice.choice((24, 48, 96, 192)), temperature=1.0))
    answer = [Segment(TEMPLATE, template.after_user), Segment(ANSWER, limit=choice.choice((96, 192, 320)), temperature=temperature)]
    segments = [Segment(TEMPLATE, template.before_user), *user, *answer]
    if choice.random() < 0.25:
        segments += [Segment(TEMPLATE, template.after_answer), Segment(PROMPT, limit=48, temperature=1.0), *answer]
    return segments
