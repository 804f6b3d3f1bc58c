"""Past answers: what is found was really answered to the same tenant, memory is bounded, and no answer changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy import FixedPolicy, LookupGate, TreeSpec, default_latency
from runtime import Decoder, SamplingParams
from runtime.decoding.sampling import Sampler, greedy
from runtime.drafters.ngram import NgramDrafter
from runtime.drafters.past import GRAMS, MAX_MATCH, SLOT_BYTES, Past, PastAnswers
from runtime.drafters.suffix import SuffixDrafter
from tests.runtime.decoding.test_loop import PROMPT, RandomPolicy, decode, expected, sampled
from tests.support.fakes import VOCAB, toy_target
from tests.support.planted import PlantedDrafter
from tests.support.tiny import random_ids

TREE, SHORTEST = TreeSpec(5, 3, 2), min(GRAMS)
MIB = 1 << 20


def kept(answers: PastAnswers, tenant: str | None, *texts: tuple[list[int], list[int]]) -> Past:
    for prompt, answer in texts:
        answers.of(tenant).keep(prompt, answer)
    return answers.of(tenant)


@pytest.fixture(scope="module")
def random_engine(engines: Mapping[str, Path]) -> Path:
    return engines["random"]


Text = tuple[list[int], list[int]]
"""A prompt and its answer."""
Texts = st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), min_size=1, max_size=40)), max_size=12)


@given(Texts, Texts, st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(90, 400))
def test_what_is_found_was_answered_to_the_same_tenant(own: Sequence[Text], others: Sequence[Text], text: list[int], slots: int) -> None:
    """Also when the ring is so small that answers overwrite each other."""
    answers = PastAnswers(slots * SLOT_BYTES)
    for each, other in zip_longest(own, others):
        kept(answers, "me", *([each] if each else []))
        kept(answers, None, *([other] if other else []))
    matched, following = answers.of("me").find(text[:-1], text[-1], 8)
    texts = ["".join(map(str, (*prompt[-MAX_MATCH:], *answer))) for prompt, answer in own]
    end = "".join(map(str, text))
    assert matched == 0 or SHORTEST <= matched <= len(text)
    assert bool(matched) == bool(following)
    assert matched == 0 or any(end[len(end) - matched :] + "".join(map(str, following)) in each for each in texts)


def test_the_longest_match_comes_first_and_of_equals_the_latest() -> None:
    template, answers = [90, 91, 92, 93], PastAnswers(MIB)
    view = kept(answers, None, *(([topic, 7, 8, 9, *[topic] * 8, *template], [topic, 50, 51, 52]) for topic in range(20)))
    assert view.find([5, 7, 8, 9, *[5] * 8, *template[:-1]], template[-1], 3) == (16, [5, 50, 51])
    assert view.find([77, *template[:-1]], template[-1], 9) == (4, [19, 50, 51, 52])  # none is longer: the last answer
    assert view.find([1, 50], 51, 9) == (0, [])  # too short
    assert answers.of(None).find([19, 50, 51, 52], 52, 9) == (0, [])


def test_memory_is_bounded_and_the_oldest_leave_first() -> None:
    answers = PastAnswers(MIB)
    texts = [([*[at] * 8, *range(100, 106)], list(range(1000 * at, 1000 * at + 60))) for at in range(1000)]
    view = kept(answers, None, *texts)
    arrays = [answers._tokens, answers._owners, *(each for _, *both in answers._lists for each in both)]
    assert sum(each.itemsize * len(each) for each in arrays) <= MIB

    def found(at: int) -> bool:
        return view.find(texts[at][0][:-1], 105, 60) == (14, texts[at][1])

    first = next(at for at in range(1000) if found(at))
    assert first == 1000 - MIB // SLOT_BYTES // 75  # tokens of an answer, its prompt and the separator
    assert all(map(found, range(first, 1000)))
    assert kept(answers, None, ([1] * 40, [3] * 100_000)).find([1] * 12, 1, 5) == (13, [3] * 5)  # longer than the ring


def test_tenants_are_apart_and_what_is_not_stored_or_forgotten_is_not_found() -> None:
    answers, question, answer = PastAnswers(MIB), [1, 2, 3, 4, 5], [6, 7, 8]
    ask = (question[:-1], question[-1], 5)
    view = kept(answers, "one", (question, answer))
    assert view.find(*ask) == (5, answer)
    for other in ("two", "", "one ", None):
        assert answers.of(other).find(*ask) == (0, [])
    answers.of("two", store=False).keep(question, answer)
    assert answers.of("two").find(*ask) == (0, [])
    view.keep(question, answer)
    running = answers.of("one")
    answers.forget()
    running.keep(question, answer)  # it was answered in part before
    assert answers.of("one").find(*ask) == view.find(*ask) == (0, [])
    assert kept(answers, "one", (question, answer)).find(*ask) == (5, answer)


@pytest.mark.parametrize("sampler", [greedy, sampled(1)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("seed", range(4))
def test_any_past_gives_the_plain_answer(sampler: Sampler, seed: int) -> None:
    """The past holds the right answer, wrong ones to the same question, and nothing of a lookup is in the cache afterwards."""
    answer, answers = expected(sampler, 40, PROMPT), PastAnswers(MIB)
    wrong = [*answer[: 10 * seed], *([3, 1, 4] * 10)]
    drafters = (SuffixDrafter(PlantedDrafter(len(PROMPT), answer, VOCAB, seed), LookupGate(default_latency(False), TREE)), NgramDrafter())
    for drafter in drafters:
        for known in ((), (wrong,), (wrong, answer), (answer, wrong)):
            drafter.past = kept(answers, str(known), *((PROMPT, each) for each in known))
            assert decode(toy_target(), drafter, RandomPolicy(seed), sampler, prompt=PROMPT)[0] == answer


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("draft", ["eagle+ngram", "ngram"])
def test_a_decoder_drafts_from_its_past_answers(random_engine: Path, lanes: int, draft: str) -> None:
    """A draft of random weights guesses nothing, so every round that gives several tokens is a lookup."""
    prompt, params = random_ids(30, 3), SamplingParams(max_new_tokens=40, temperature=1.0, seed=4)
    with Decoder(random_engine, threads=1, lanes=lanes, draft=draft, policy=FixedPolicy(TREE), past_mib=1) as decoder:
        plain = decoder.generate(prompt, params, policy="none")
        decoder.forget()

        def cycles(tenant: str | None = None, store: bool = True) -> int:
            result = decoder.generate(prompt, params, tenant=tenant, store=store)
            assert result.tokens == plain.tokens
            return result.stats.cycles

        fresh = cycles(store=False)
        assert cycles() == fresh  # nothing was kept
        assert cycles() < 0.6 * fresh
        assert cycles("other") == fresh
        decoder.forget()
        assert cycles("other") == cycles(None) == fresh
    with Decoder(random_engine, threads=1, lanes=lanes, draft=draft, policy=FixedPolicy(TREE)) as decoder:
        assert [cycles(), cycles()] == [fresh, fresh]


def test_forks_share_what_was_answered(random_engine: Path) -> None:
    prompt, params = random_ids(30, 3), SamplingParams(max_new_tokens=40)
    with Decoder(random_engine, threads=1, past_mib=1) as first, first.fork() as second:
        fresh = first.generate(prompt, params)
        second.warmup()  # as a reload of the tuning does while others serve
        again = second.generate(prompt, params)
        assert again.tokens == fresh.tokens
        assert again.stats.cycles < fresh.stats.cycles


def test_a_negative_size_is_refused(random_engine: Path) -> None:
    with pytest.raises(ValueError, match="past_mib must be 0 or more, not -1"):
        Decoder(random_engine, past_mib=-1)
