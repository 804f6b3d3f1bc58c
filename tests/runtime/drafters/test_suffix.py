"""Suffix lookup: the index finds the longest match, lookups are used when they pay, and answers never change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy import FixedPolicy, LookupGate, TreeSpec, default_latency
from policy.lookup import CHAIN_SIZES, MIN_MATCH
from runtime.decoding.loop import prefill, rounds
from runtime.decoding.sampling import Sampler, TargetOutput, greedy
from runtime.decoding.tree import Tree
from runtime.drafters.ngram import NgramDrafter
from runtime.drafters.suffix import MAX_MATCH, MAX_POSITIONS, SuffixDrafter, SuffixIndex
from tests.runtime.decoding.test_loop import PROMPT, RandomPolicy, decode, expected, sampled
from tests.support.fakes import VOCAB, toy_target
from tests.support.planted import PlantedDrafter

TREE, NOTHING = TreeSpec(5, 3, 2), TargetOutput({}, Tree.chain([0]), 0, 0)


def make_gate(quantized: bool = False) -> LookupGate:
    return LookupGate(default_latency(quantized), TREE)


def matched_before(text: list[int], position: int) -> int:
    """How many tokens before ``position`` equal the last ones of ``text``."""
    count = 0
    while count < min(position, MAX_MATCH) and text[position - 1 - count] == text[-1 - count]:
        count += 1
    return count


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_index_finds_the_longest_match_and_of_equals_the_latest(text: list[int]) -> None:
    index = SuffixIndex()
    index.extend(text[:-1])
    end = text[-MIN_MATCH:]
    positions = [position for position in range(MIN_MATCH, len(text)) if text[position - MIN_MATCH : position] == end][-MAX_POSITIONS:]
    best = max(((matched_before(text, position), position) for position in positions), default=(0, 0))
    assert index.find(text[-1]) == best


@given(st.lists(st.integers(0, 9), min_size=2, max_size=12), st.integers(1, 30))
def test_a_loop_continues_beyond_the_end_of_the_text(loop: list[int], count: int) -> None:
    index, text = SuffixIndex(), loop * 3
    index.extend(text[:-1])
    matched, position = index.find(text[-1])
    assert matched >= len(loop)
    assert index.continuation(position, text[-1], count) == (loop * 40)[:count]


@pytest.mark.parametrize("quantized", [False, True])
def test_lookups_grow_with_the_match_and_stop_when_they_fail(quantized: bool) -> None:
    gate = make_gate(quantized)
    assert gate.rows(0, 16, 100) == gate.rows(MIN_MATCH - 1, 16, 100) == gate.rows(30, 1, 100) == 1
    sizes = [gate.rows(matched, 16, 100) for matched in (2, 4, 8, 30)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == CHAIN_SIZES[-1]
    assert gate.rows(30, 4, 100) == 4  # at most max_rows
    for _ in range(60):
        gate.observe_lookup(4, 4, 0)
    assert gate.rows(4, 16, 100) == 1
    assert gate.rows(30, 16, 100) == CHAIN_SIZES[-1]  # longer matches have their own rates
    gate.begin()
    assert gate.rows(4, 16, 100) == sizes[1]


def test_lookups_must_beat_drafted_rounds() -> None:
    good_drafts, bad_drafts = make_gate(), make_gate()
    for _ in range(60):
        good_drafts.observe_draft(5, 3, 2, 100, tokens=4)
        bad_drafts.observe_draft(5, 3, 2, 100, tokens=1)
    assert good_drafts.rows(3, 16, 100) == 1 < bad_drafts.rows(3, 16, 100)


@pytest.mark.parametrize("sampler", [greedy, sampled(1), sampled(2)], ids=["greedy", "sampled-1", "sampled-2"])
@pytest.mark.parametrize("seed", range(4))
def test_any_lookup_gives_the_plain_answer_and_the_plain_cache(sampler: Sampler, seed: int) -> None:
    """A prompt that repeats itself makes lookups likely, and the toy target rejects most of them."""
    prompt = PROMPT * 3
    answer, target = expected(sampler, 40, prompt), toy_target()
    drafter = SuffixDrafter(PlantedDrafter(len(prompt), answer, VOCAB, seed), make_gate())
    tokens, done = decode(target, drafter, RandomPolicy(seed), sampler, prompt=prompt)
    assert tokens == answer
    fresh = toy_target()
    list(fresh.prefill([*prompt, *answer[:-1]]))
    np.testing.assert_array_equal(target.cache.rows(), fresh.cache.rows())
    again, _ = decode(target, drafter, RandomPolicy(seed), sampler, prompt=prompt)  # earlier requests have no influence
    assert again == answer
    assert any(each.spec.width == 1 and each.spec.nodes in CHAIN_SIZES for each in done)


def test_a_kept_prefix_is_indexed_again() -> None:
    text = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    extended, begun = (SuffixDrafter(NgramDrafter(), make_gate()) for _ in range(2))
    extended.extend(text, NOTHING, range(len(text)))
    assert begun.begin(text) == len(text)
    for drafter in (extended, begun):
        lookup = drafter.lookup(3, 8)
        assert lookup is not None
        assert lookup.tokens.tolist() == [3, 4, 1, 2, 3, 4, 1, 2][: len(lookup)]


def test_policy_chooses_for_drafted_rounds_only() -> None:
    prompt, policy = PROMPT * 3, RandomPolicy(3)
    answer = expected(greedy, 40, prompt)
    _, done = decode(toy_target(), SuffixDrafter(PlantedDrafter(len(prompt), answer, VOCAB, 3), make_gate()), policy, greedy, prompt=prompt)
    assert len(policy.chosen) == len(policy.outcomes) < len(done)


def test_repeated_text_gives_several_tokens_per_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a target that repeats the same five tokens forever."""
    monkeypatch.setattr("tests.support.fakes.toy_logits", lambda context: np.eye(VOCAB, dtype=np.float32)[len(context) % 5])
    target, drafter = toy_target(), SuffixDrafter(NgramDrafter(), make_gate())
    *_, root = prefill(target, drafter, greedy, [0, 1, 2, 3, 4])
    assert root is not None
    done = list(rounds(target, drafter, FixedPolicy(TreeSpec(1, 0, 0)), greedy, root, 60))
    assert [token for each in done for token in each.tokens] == [step % 5 for step in range(1, 61)]
    assert max(len(each.tokens) for each in done) == CHAIN_SIZES[-1]
    assert len(done) < 15
