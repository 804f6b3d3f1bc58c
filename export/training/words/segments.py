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

    turns = [{"role": role, "content": PLACEHOLDER} for role in ("user", "assistant", "user")]
    before_user, after_user = text.render(turns[:1]).split(PLACEHOLDER)
    _, _, after_answer, _ = text.render(turns).split(PLACEHOLDER)
    before, after = text.encode_rendered(before_user), text.encode_raw(after_user)
    return TemplateTokens(before, after, text.encode_raw(after_answer), frozenset(stop))


@dataclass(frozen=True)
class Segment:
    """Part of a conversation: the tokens ``given``, or up to ``limit`` tokens that the target writes at ``temperature``."""

    kind: int
    given: list[int] = field(default_factory=list)
    limit: int = 0
    temperature: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Of a conversation: what kind of text it is (seed_prompts.SHARES), and its segments."""

    text: str
    segments: list[Segment]


TEMPERATURES = {0.0: 50, 0.3: 10, 0.5: 10, 0.7: 10, 0.85: 10, 1.0: 10}
"""Of answers, in percent. Half are greedy, as in most serving."""
ROUNDS = {1: 70, 2: 20, 3: 10}
"""Questions and answers of a conversation, in percent."""
TURN_LIMITS, LONG_TURN_LIMITS, ANSWER_LIMITS = (24, 48, 96, 192), (192, 320, 512), (96, 192, 320)
"""Most tokens that the target writes of a user turn, of one that holds a text to summarize, and of an answer."""


def plan_conversation(seed: SeedPrompt, text: Tokenizer, template: TemplateTokens, choice: random.Random) -> Plan:
    """A user turn and an answer, and in some conversations more of both. The target writes what the seed leaves open."""
    temperature = choice.choices(list(TEMPERATURES), list(TEMPERATURES.values()))[0]
    user = [Segment(PROMPT, text.encode_raw(seed.text))]
    if not seed.complete:
        limits = LONG_TURN_LIMITS if seed.kind == "passage" else TURN_LIMITS
        user.append(Segment(PROMPT, limit=choice.choice(limits), temperature=1.0))
    answer = [Segment(TEMPLATE, template.after_user), Segment(ANSWER, limit=choice.choice(ANSWER_LIMITS), temperature=temperature)]
    segments = [Segment(TEMPLATE, template.before_user), *user, *answer]
    for _ in range(choice.choices(list(ROUNDS), list(ROUNDS.values()))[0] - 1):
        segments += [Segment(TEMPLATE, template.after_answer), Segment(PROMPT, limit=48, temperature=1.0), *answer]
    return Plan(seed.kind, segments)
