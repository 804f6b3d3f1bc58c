"""Plans of conversations, and the conversations that follow with targets that stop early, late or never."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

from export.training.words.generate import RunningConversation
from export.training.words.seed_prompts import SeedPrompt
from export.training.words.segments import (
    ANSWER,
    PROMPT,
    ROUNDS,
    TEMPERATURES,
    TEMPLATE,
    Segment,
    TemplateTokens,
    plan_conversation,
    template_tokens,
)
from runtime.manifest.schema import Tokens
from runtime.text.tokenizer import Tokenizer
from tests.support.tiny import write_tokenizer

CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
STOP = 2


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tiny tokenizer under a template with turn markers."""
    directory = tmp_path_factory.mktemp("text")
    write_tokenizer(directory)
    (directory / "chat_template.jinja").write_text(CHATML)
    return Tokenizer(directory, Tokens("tokenizer.json", {"default": "chat_template.jinja"}, (STOP,), 1))


@pytest.fixture(scope="module")
def template(text: Tokenizer) -> TemplateTokens:
    return template_tokens(text, (STOP,))


def finished(segments: list[Segment], writer: Callable[[list[int]], int]) -> RunningConversation:
    """A whole conversation. ``writer``: the target's next token, given the tokens so far."""
    conversation, tokens = RunningConversation("chat", segments), list[int]()
    while (token := conversation.next_token(writer(tokens), frozenset((STOP,)))) is not None:
        tokens.append(token)
    assert conversation.tokens == tokens
    assert len(conversation.kinds) == len(tokens)
    return conversation


def turns_of(conversation: RunningConversation, text: Tokenizer) -> list[dict[str, str]]:
    """The messages, separated by the kinds of the tokens."""
    pairs = zip(conversation.tokens, conversation.kinds, strict=True)
    runs = [(kind, [token for token, _ in run]) for kind, run in groupby(pairs, key=lambda pair: pair[1])]
    roles = {PROMPT: "user", ANSWER: "assistant"}
    return [{"role": roles[kind], "content": text.decode(tokens)} for kind, tokens in runs if kind != TEMPLATE]


def test_template_tokens_are_what_the_template_puts_around_texts(text: Tokenizer, template: TemplateTokens) -> None:
    messages = [{"role": role, "content": content} for role, content in (("user", "the cat"), ("assistant", "sat"), ("user", "on the"))]
    raw = text.encode_raw
    first = [*template.before_user, *raw("the cat"), *template.after_user]
    assert first == raw(text.render(messages[:1]))
    assert [*first, *raw("sat"), *template.after_answer, *raw("on the"), *template.after_user] == raw(text.render(messages))
    assert template.stop == {STOP}


@pytest.mark.parametrize("words", [None, 0, 1, 7])
def test_conversation_is_the_rendered_template_with_the_texts_in_it(text: Tokenizer, template: TemplateTokens, words: int | None) -> None:
    """For a target that never stops, and for targets that stop after some words."""
    (the,) = text.encode_raw(" the")
    rounds, temperatures = set(), set()
    for seed in range(80):
        kind = "passage" if seed % 3 else "chat"
        plan = plan_conversation(SeedPrompt(kind, "Can you", seed % 2 == 0), text, template, random.Random(seed))
        assert plan.text == kind
        segments = plan.segments
        temperatures |= {each.temperature for each in segments if each.kind == ANSWER}

        def writer(tokens: list[int]) -> int:
            written = next((age for age, token in enumerate(reversed(tokens)) if token != the), 0)
            return STOP if written == words else the

        conversation = finished(segments, writer)
        turns = turns_of(conversation, text)
        if words != 0:
            assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
            rounds.add(len(turns) // 2)
            whole = text.encode_raw(text.render(turns))
            ending = [] if words else [STOP]  # an answer that reached its limit has no stop token
            assert conversation.tokens + ending + text.encode_raw("\n<s>assistant\n") == whole
        lengths = {kind: sum(len(each.given) for each in segments if each.kind == kind) for kind in (PROMPT, ANSWER)}
        for each in segments:  # a target that does not stop is stopped at the limit
            lengths[each.kind] = lengths.get(each.kind, 0) + (each.limit if words is None else min(each.limit, words))
        lengths[ANSWER] += words is not None
        assert all(conversation.kinds.count(kind) == lengths[kind] for kind in (PROMPT, ANSWER))
        assert (conversation.tokens[-1], conversation.kinds[-1]) == (the if words is None else STOP, ANSWER)
    assert words == 0 or rounds == set(ROUNDS)
    assert temperatures == set(TEMPERATURES)


def test_stop_tokens_end_a_segment_and_only_the_last_one_is_kept() -> None:
    segments = [
        Segment(TEMPLATE, [10, 11]),
        Segment(PROMPT, [12]),
        Segment(PROMPT, limit=3, temperature=1.0),
        Segment(TEMPLATE, [STOP, 13]),
        Segment(ANSWER, limit=2),
    ]
    said = {3: 20, 4: STOP, 6: 30, 7: 31, 8: STOP}  # length so far -> what the target writes
    conversation = finished(segments, lambda tokens: said.get(len(tokens), 99))
    assert conversation.tokens == [10, 11, 12, 20, STOP, 13, 30, 31, STOP]
    assert conversation.kinds == [0, 0, 1, 1, 0, 0, 2, 2, 2]
    assert finished(segments, lambda tokens: 40).tokens == [10, 11, 12, 40, 40, 40, STOP, 13, 40, 40]
    assert finished(segments, lambda tokens: STOP).tokens == [10, 11, 12, STOP, 13, STOP]
    assert finished([Segment(TEMPLATE, [10]), Segment(ANSWER, [STOP, 7, STOP])], lambda tokens: STOP).tokens == [10, STOP, 7, STOP]


def test_temperature_is_that_of_the_token_to_come() -> None:
    conversation = RunningConversation(
        "chat", [Segment(TEMPLATE, [5, 6]), Segment(PROMPT, limit=2, temperature=1.0), Segment(TEMPLATE, [7]), Segment(ANSWER, limit=2)]
    )
    seen = []
    while (token := conversation.next_token(9, frozenset())) is not None:
        seen.append((token, conversation.temperature))
    assert seen[1] == (6, 1.0)
    assert seen[2] == (9, 1.0)
    assert seen[4:6] == [(7, 0.0), (9, 0.0)]


def test_an_answer_ends_as_the_template_ends_it() -> None:
    assert TemplateTokens([1], [2], [9, 7, 3], frozenset({0, 3, 7})).end == 7
    assert TemplateTokens([1], [2], [9], frozenset({4, 5})).end == 4


@pytest.mark.parametrize("adds", [True, False])
def test_conversations_begin_with_what_the_engine_puts_before_a_chat(tmp_path: Path, adds: bool) -> None:
    """A GGUF's tokenizer adds its first token to every prompt; a template that writes it already has it once."""
    write_tokenizer(tmp_path)
    for begins in ("", "</s>"):
        (tmp_path / "chat_template.jinja").write_text(begins + CHATML)
        tokens = Tokens("tokenizer.json", {"default": "chat_template.jinja"}, (STOP,), bos=STOP, chat_bos=adds)
        text = Tokenizer(tmp_path, tokens)
        found = template_tokens(text, (STOP,))
        assert [*found.before_user, *text.encode_raw("the cat"), *found.after_user] == text.encode([{"role": "user", "content": "the cat"}])
        assert (found.before_user[0] == STOP) == (adds or bool(begins))
