"""Training data: the target in torch against transformers, and the conversations that it writes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import groupby, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from export.checkpoints.safetensors import SafetensorsCheckpoint
from export.training.openings import OF_CODE, OF_TEXT, SHARES, Opening, library_functions, library_passages, open_turns, openings
from export.training.target import Step, TorchTarget
from export.training.words import ANSWER, FORCED, MIN_P, PROMPT, Frame, Stretch, Talk, choose, converse, frame_of, script
from runtime.manifest.schema import Tokens
from runtime.text.tokenizer import Tokenizer
from tests.support.tiny import ARCHITECTURES, VOCAB, reference, tiny_model, write_tokenizer

CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
STOP = 2
CPU = torch.device("cpu")


def torch_target(directory: Path, model: Any, batch: int, capacity: int) -> TorchTarget:
    model.save_pretrained(directory)
    return TorchTarget(SafetensorsCheckpoint(directory), batch, capacity, CPU, torch.float32)


def expect_states(target: TorchTarget, model: Any, tokens: list[int], captures: Tensor, final: Tensor) -> None:
    """Every position of a conversation as transformers computes it from the whole."""
    logits, streams = reference(model, tokens)
    expected = np.concatenate([streams[layer] for layer in target.arch.captured], axis=-1)
    np.testing.assert_allclose(captures.numpy(), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose((final @ target.head.T).numpy(), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layers", [6, 8])  # with six, two of the captured layers are the same
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torch_target_equals_transformers_with_sequences_interleaved(tmp_path: Path, name: str, layers: int) -> None:
    choice = random.Random(layers)
    model = tiny_model(name, tied=layers == 6, num_hidden_layers=layers)
    target = torch_target(tmp_path, model, 3, 16)
    texts = [choice.choices(range(VOCAB), k=length) for length in (4, 16, 9)]
    states: list[list[tuple[Tensor, Tensor]]] = [[], [], []]
    while any(len(state) < len(text) for state, text in zip(states, texts, strict=True)):
        lengths = [min(len(state), 15) for state in states]
        going = [len(state) < len(text) and choice.random() < 0.7 for state, text in zip(states, texts, strict=True)]
        # A sequence that waits is fed something else, which its next step overwrites.
        feed = [text[at] if goes else choice.randrange(VOCAB) for text, at, goes in zip(texts, lengths, going, strict=True)]
        step = target.step(torch.tensor(feed), torch.tensor(lengths), choice.randint(max(lengths) + 1, 16))
        for slot in range(3):
            if going[slot]:
                states[slot].append((step.captures[slot], step.final[slot]))
    for text, state in zip(texts, states, strict=True):
        captures, final = (torch.stack(parts) for parts in zip(*state, strict=True))
        expect_states(target, model, text, captures, final)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tiny tokenizer under a template with turn markers."""
    directory = tmp_path_factory.mktemp("text")
    write_tokenizer(directory)
    (directory / "chat_template.jinja").write_text(CHATML)
    return Tokenizer(directory, Tokens("tokenizer.json", "chat_template.jinja", (STOP,), 1))


@pytest.fixture(scope="module")
def frame(text: Tokenizer) -> Frame:
    return frame_of(text, (STOP,))


def talked(stretches: list[Stretch], writer: Callable[[list[int]], int]) -> Talk:
    """A whole conversation with a target that goes on from the tokens so far as ``writer`` says."""
    talk, tokens = Talk(stretches), list[int]()
    while (token := talk.next_token(writer(tokens), frozenset((STOP,)))) is not None:
        tokens.append(token)
    assert talk.tokens == tokens
    assert len(talk.kinds) == len(tokens)
    return talk


def turns_of(talk: Talk, text: Tokenizer) -> list[dict[str, str]]:
    """The messages that the kinds of the tokens make out."""
    runs = [
        (kind, [token for token, _ in run]) for kind, run in groupby(zip(talk.tokens, talk.kinds, strict=True), key=lambda each: each[1])
    ]
    roles = {PROMPT: "user", ANSWER: "assistant"}
    return [{"role": roles[kind], "content": text.decode(tokens)} for kind, tokens in runs if kind != FORCED]


def test_frame_is_the_template_around_the_texts(text: Tokenizer, frame: Frame) -> None:
    messages = [{"role": role, "content": content} for role, content in (("user", "the cat"), ("assistant", "sat"), ("user", "on the"))]
    raw = text.encode_raw
    first = [*frame.before, *raw("the cat"), *frame.after]
    assert first == raw(text.render(messages[:1]))
    assert [*first, *raw("sat"), *frame.between, *raw("on the"), *frame.after] == raw(text.render(messages))
    assert frame.stop == {STOP}


@pytest.mark.parametrize("words", [None, 0, 1, 7])
def test_conversation_is_the_rendered_template_with_the_texts_in_it(text: Tokenizer, frame: Frame, words: int | None) -> None:
    """For a target that writes without end, and for those that stop after some words."""
    (the,) = text.encode_raw(" the")
    rounds, temperatures = set(), set()
    for seed in range(40):
        stretches = script(Opening("Can you", seed % 2 == 0), text, frame, random.Random(seed))
        temperatures |= {each.temperature for each in stretches if each.kind == ANSWER}

        def writer(tokens: list[int]) -> int:
            written = next((age for age, token in enumerate(reversed(tokens)) if token != the), 0)
            return STOP if written == words else the

        talk = talked(stretches, writer)
        turns = turns_of(talk, text)
        if words != 0:
            assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
            rounds.add(len(turns) // 2)
            whole = text.encode_raw(text.render(turns))
            ending = [] if words else [STOP]  # of an answer at its limit the end is not said
            assert talk.tokens + ending + text.encode_raw("\n<s>assistant\n") == whole
        lengths = {kind: sum(len(each.forced) for each in stretches if each.kind == kind) for kind in (PROMPT, ANSWER)}
        for each in stretches:  # a target that does not stop is stopped at the limit
            lengths[each.kind] = lengths.get(each.kind, 0) + (each.limit if words is None else min(each.limit, words))
        lengths[ANSWER] += words is not None
        assert all(talk.kinds.count(kind) == lengths[kind] for kind in (PROMPT, ANSWER))
        assert (talk.tokens[-1], talk.kinds[-1]) == (the if words is None else STOP, ANSWER)
    assert words == 0 or rounds == {1, 2}
    assert temperatures == {0.0, 0.7, 1.0}


def test_stop_tokens_end_a_stretch_and_only_the_last_one_is_kept() -> None:
    stretches = [
        Stretch(FORCED, [10, 11]),
        Stretch(PROMPT, [12]),
        Stretch(PROMPT, limit=3, temperature=1.0),
        Stretch(FORCED, [STOP, 13]),
        Stretch(ANSWER, limit=2),
    ]
    said = {3: 20, 4: STOP, 6: 30, 7: 31, 8: STOP}  # length so far -> what the target says
    talk = talked(stretches, lambda tokens: said.get(len(tokens), 99))
    assert talk.tokens == [10, 11, 12, 20, STOP, 13, 30, 31, STOP]
    assert talk.kinds == [0, 0, 1, 1, 0, 0, 2, 2, 2]
    assert talked(stretches, lambda tokens: 40).tokens == [10, 11, 12, 40, 40, 40, STOP, 13, 40, 40]
    assert talked(stretches, lambda tokens: STOP).tokens == [10, 11, 12, STOP, 13, STOP]
    assert talked([Stretch(FORCED, [10]), Stretch(ANSWER, [STOP, 7, STOP])], lambda tokens: STOP).tokens == [10, STOP, 7, STOP]


def test_temperature_is_that_of_the_token_to_come() -> None:
    talk = Talk([Stretch(FORCED, [5, 6]), Stretch(PROMPT, limit=2, temperature=1.0), Stretch(FORCED, [7]), Stretch(ANSWER, limit=2)])
    seen = []
    while (token := talk.next_token(9, frozenset())) is not None:
        seen.append((token, talk.temperature))
    assert seen[1] == (6, 1.0)
    assert seen[2] == (9, 1.0)
    assert seen[4:6] == [(7, 0.0), (9, 0.0)]


def spoken(model: Any, stretches: list[Stretch], stop: frozenset[int], capacity: int) -> tuple[list[int], list[int]]:
    """What a script becomes when transformers decodes the free stretches greedily: tokens and kinds."""
    tokens: list[int] = []
    kinds: list[int] = []
    for index, each in enumerate(stretches):
        new, last = list(each.forced), index == len(stretches) - 1
        while not each.forced and len(tokens) + len(new) < capacity:
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
    """Also in slots that others used before, and up to the capacity of a slot."""
    choice = random.Random(5)
    model = tiny_model()
    target = torch_target(tmp_path, model, 3, 24)
    stop = frozenset(choice.sample(range(VOCAB), 30))

    def scripts() -> Iterator[list[Stretch]]:
        for number in range(10**6):
            prompt = choice.choices(range(VOCAB), k=choice.randint(1, 6))
            stretches = [Stretch(FORCED, [number % VOCAB]), Stretch(PROMPT, prompt), Stretch(ANSWER, limit=choice.randint(1, 12))]
            if number % 3 == 0:
                stretches += [Stretch(FORCED, [7, 8]), Stretch(PROMPT, limit=3), Stretch(FORCED, [9]), Stretch(ANSWER, limit=6)]
            yield stretches

    kept: list[list[Stretch]] = []
    noted = (kept.append(each) or each for each in scripts())  # type: ignore[func-returns-value]
    found = list(islice(converse(target, noted, 3, stop, 0), 16))
    assert len({int(each.tokens[0]) for each in found}) == 16
    ended, filled = 0, 0
    for conversation in found:
        tokens, kinds = spoken(model, kept[int(conversation.tokens[0])], stop, 24)
        assert conversation.tokens.tolist() == tokens
        assert conversation.kinds.tolist() == kinds
        expect_states(target, model, tokens, conversation.captures, conversation.final)
        ended, filled = ended + (tokens[-1] in stop), filled + (len(tokens) == 24)
    assert min(ended, filled, 16 - ended) > 0  # every way to end occurs


def test_warm_tokens_are_drawn_from_the_head_of_the_distribution() -> None:
    """Min-p: in proportion to the probabilities, none that is far less probable than the best; cold ones are the argmax."""
    logits = torch.tensor([0.0, 1.0, 3.0, 2.0, -2.0])
    target: Any = SimpleNamespace(head=torch.eye(5))
    generator = torch.Generator().manual_seed(0)
    temperatures = torch.tensor([0.0] * 10 + [0.8] * 20_000)
    drawn = choose(target, Step(logits.expand(len(temperatures), -1), torch.empty(0)), temperatures, generator)
    assert drawn[:10].tolist() == [2] * 10
    weights = (logits / 0.8 - logits.max() / 0.8).exp()
    expected = weights * (weights >= MIN_P)
    assert (expected == 0).sum() == 2
    torch.testing.assert_close(drawn[10:].bincount(minlength=5) / 20_000, expected / expected.sum(), rtol=0, atol=0.015)


def test_openings_are_repeatable_and_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = open_turns()
    assert turns.keys() | {"library code", "library text"} == SHARES.keys()
    assert all(words.strip() and "\\n" not in words for kind in turns.values() for words in kind)
    code, passages = library_functions(300), library_passages(300)
    assert max(map(len, code)) <= 300
    assert max(map(len, passages)) <= 300
    monkeypatch.setattr("export.training.openings.library_functions", lambda longest: code)  # read once: it takes a second
    first, again, other = (list(islice(openings(seed, 300), 400)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    pools = {kind: set(words) for kind, words in turns.items()}
    pools["library code"] = {form.format(each) for form in OF_CODE for each in code}
    pools["library text"] = {form.format(each) for form in OF_TEXT for each in passages}
    for kind, pool in pools.items():
        drawn = [each for each in first if each.text in pool]
        assert drawn, kind
        assert {each.open for each in drawn} == {not kind.startswith("library")}
    assert all(any(each.text in pool for pool in pools.values()) for each in first)
