"""The law with constraints: any tree gives the tokens of plain constrained decoding, and the grammar allows each of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from policy import FixedPolicy
from runtime.constraints.drafter import ConstrainedDrafter, allowed_part
from runtime.decoding.gumbel import host_samplers
from runtime.decoding.tree import Tree
from runtime.drafters.ngram import NgramDrafter
from runtime.drafters.none import NoDrafter
from tests.runtime.decoding.test_loop import PROMPT, TREES, RandomPolicy, decode
from tests.support.constraints import FEW, TOY_CONSTRAINTS, toy_constraint
from tests.support.fakes import VOCAB, toy_logits, toy_target
from tests.support.plain_sampling import any_rules, plain_answer, toy_rules
from tests.support.planted import PlantedDrafter

STOP = frozenset({VOCAB - 1})
SAMPLERS = host_samplers(VOCAB)
assert len(FEW) == VOCAB - 1


@pytest.mark.parametrize("constraint", TOY_CONSTRAINTS, ids=lambda each: f"{each.kind} {each.form.kind if each.form else ''}")
@pytest.mark.parametrize("seed", range(6))
def test_any_tree_gives_the_plain_answer(seed: int, constraint: object) -> None:
    random = np.random.default_rng(seed)
    params = replace(any_rules(random, VOCAB, 40), constraint=constraint)  # type: ignore[arg-type]
    answer = plain_answer(toy_logits, PROMPT, params, STOP, 40)
    if answer[-1] not in STOP:
        assert len(answer) == 40
    accepted = 0
    for policy in (RandomPolicy(seed), FixedPolicy(TREES[seed])):
        for drafter in (PlantedDrafter(len(PROMPT), answer, VOCAB, seed), NgramDrafter(), NoDrafter()):
            state = toy_constraint(params)
            assert state is not None
            sampler = SAMPLERS(params, toy_rules(params, PROMPT, STOP, state))
            tokens, done = decode(toy_target(), ConstrainedDrafter(drafter, state), policy, sampler, budget=len(answer))
            assert tokens == answer
            accepted += sum(len(each.tokens) - 1 for each in done)
    for at, token in enumerate(answer):
        state = toy_constraint(params)
        assert state is not None
        for earlier in answer[:at]:
            state.push(earlier)
        assert token in STOP or state.allowed([token]) == 1
    assert accepted > 0 or len(answer) < 4


def test_what_is_excluded_is_not_verified() -> None:
    state = toy_constraint(replace(any_rules(np.random.default_rng(0), VOCAB, 9), constraint=TOY_CONSTRAINTS[1]))
    assert state is not None
    a, b, ab = 0, 1, 2
    state.push(a)
    tree = Tree.from_parents([a, b, a, ab, ab, b, b, a], [-1, 0, 0, 2, 0, 4, 3, 4])
    kept = allowed_part(tree, state)  # after "a" there must be "abab" or "b:ab:ab"
    expected = Tree.from_parents([a, b, a, ab, a], [-1, 0, 0, 0, 3])
    for name in ("tokens", "parent", "depth", "mask"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(expected, name))
    whole = Tree.from_parents([a, ab, ab], [-1, 0, 1])
    assert allowed_part(whole, state) is whole


def test_forced_tokens_are_a_chain_without_drafting() -> None:
    state = toy_constraint(replace(any_rules(np.random.default_rng(0), VOCAB, 9), constraint=TOY_CONSTRAINTS[1]))
    assert state is not None
    drafter = ConstrainedDrafter(NoDrafter(), state)
    assert drafter.lookup(0, 8) is None  # four texts may come
    state.push(3)
    chain = drafter.lookup(3, 8)
    assert chain is not None
    assert b"".join(FEW[token] for token in chain.tokens) == b"1,1,1,1,"[: len(chain)]
    assert len(chain) > 4
    short = drafter.lookup(3, 3)
    assert short is not None
    assert len(short) == 3
    assert drafter.lookup(3, 1) is None
