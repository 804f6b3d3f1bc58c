"""The laws of the loop, on a toy target: any drafter, any policy, greedy or sampled - the tokens and the cache of plain decoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import runtime.decoding.target
from policy import PLAIN, FixedPolicy, Observation, Outcome, Policy, TreeSpec
from runtime.decoding.loop import Round, begin, prefill, rounds
from runtime.decoding.sampling import Pick, Scores, greedy, uniforms
from runtime.decoding.target import Target
from runtime.decoding.tree import Tree
from runtime.drafters.base import Drafter, NoDrafter
from runtime.drafters.ngram import NgramDrafter
from runtime.errors import EngineFailure
from tests.support.fakes import LIMITS, VOCAB, toy_logits, toy_target
from tests.support.planted import DummyRowDrafter, PlantedDrafter

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
TREES = [PLAIN, TreeSpec(4, 3, 1), TreeSpec(8, 7, 1), TreeSpec(7, 1, 6), TreeSpec(16, 4, 4), TreeSpec(64, 8, 8)]


class RandomPolicy:
    """Another tree every round; remembers what it was told."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.chosen: list[TreeSpec] = []
        self.outcomes: list[Outcome] = []
        self.observations: list[tuple[int, int, list[float]]] = []

    def begin(self) -> None:
        """Goes on as it was."""

    def choose(self, observation: Observation) -> TreeSpec:
        self.observations.append((observation.length, observation.room, observation.features.tolist()))
        self.chosen.append(TREES[int(self._random.integers(len(TREES)))])
        return self.chosen[-1]

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def sampled(seed: int) -> Pick:
    """Inverse CDF in numpy, keyed by position as the real one is."""
    keys = uniforms(seed, LIMITS.capacity)

    def pick(scores: Scores, row: int, position: int) -> int:
        weights = np.exp(scores.logits[row].astype(np.float64))
        return int(np.searchsorted(np.cumsum(weights) / weights.sum(), keys[position], side="right"))

    return pick


def decode(
    target: Target, drafter: Drafter, policy: Policy, pick: Pick, budget: int = 40, prompt: Sequence[int] = PROMPT
) -> tuple[list[int], list[Round]]:
    begin(target, drafter, prompt)
    *waiting, root = prefill(target, drafter, pick, prompt)
    assert waiting == [None] * (len(waiting))
    assert root is not None
    done = list(rounds(target, drafter, policy, pick, root, budget - 1))
    return [root.token, *(token for each in done for token in each.tokens)], done


def expected(pick: Pick, count: int, prompt: Sequence[int] = PROMPT) -> list[int]:
    """Plain decoding without any of our runtime."""
    context = list(prompt)
    for _ in range(count):
        logits = toy_logits(context)[None]
        scores = Scores({"next_token": logits.argmax(-1)[None], "logits": logits[None]}, Tree.chain([0]), len(context) - 1, 1)
        context.append(pick(scores, 0, len(context)))
    return context[len(prompt) :]


@pytest.mark.parametrize("pick", [greedy, sampled(1), sampled(2)], ids=["greedy", "sampled-1", "sampled-2"])
@pytest.mark.parametrize("spec", TREES, ids=str)
def test_every_tree_gives_the_plain_answer(pick: Pick, spec: TreeSpec) -> None:
    answer = expected(pick, 40)
    for drafter in (
        NoDrafter(),
        NgramDrafter(),
        DummyRowDrafter(VOCAB),
        *(PlantedDrafter(len(PROMPT), answer, VOCAB, s) for s in range(4)),
    ):
        if spec == PLAIN and isinstance(drafter, DummyRowDrafter):
            continue  # it ignores the tree it is asked for
        tokens, _ = decode(toy_target(), drafter, FixedPolicy(spec), pick)
        assert tokens[:40] == answer


@pytest.mark.parametrize("seed", range(8))
def test_any_policy_gives_the_plain_answer_and_the_plain_cache(seed: int) -> None:
    answer, target = expected(greedy, 40), toy_target()
    tokens, done = decode(target, PlantedDrafter(len(PROMPT), answer, VOCAB, seed), RandomPolicy(seed), greedy)
    assert tokens == answer
    assert max(len(each.tokens) for each in done) > 3  # the trees did bring something
    fresh = toy_target()
    list(fresh.prefill([*PROMPT, *answer[:-1]]))
    assert target.length == fresh.length == len(PROMPT) + 39
    np.testing.assert_array_equal(target.cache.rows(), fresh.cache.rows())


def test_policy_sees_each_round_and_is_credited_with_it() -> None:
    answer, policy = expected(greedy, 40), RandomPolicy(0)
    _, done = decode(toy_target(), PlantedDrafter(len(PROMPT), answer, VOCAB, 0), policy, greedy)
    assert len(policy.chosen) == len(policy.outcomes) == len(done)
    for chosen, outcome, each in zip(policy.chosen, policy.outcomes, done, strict=True):
        assert (outcome.spec, outcome.nodes, outcome.tokens) == (each.spec, each.nodes, len(each.tokens))
        assert outcome.spec.nodes <= chosen.nodes
        assert outcome.seconds == each.seconds >= each.draft_seconds + each.verify_seconds
    lengths = [length for length, _, _ in policy.observations]
    assert lengths == [len(PROMPT) + sum(len(each.tokens) for each in done[:i]) for i in range(len(done))]
    context = [*PROMPT, *answer]
    for length, _, features in policy.observations:  # those of the last committed position
        assert features == [length - 1, context[length - 1]] * 3


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 40])
def test_budget_is_met_exactly(budget: int) -> None:
    answer = expected(greedy, 60)
    for seed in range(3):
        tokens, _ = decode(toy_target(), PlantedDrafter(len(PROMPT), answer, VOCAB, seed), FixedPolicy(TREES[-1]), greedy, budget)
        assert tokens == answer[:budget]


@pytest.mark.parametrize("spec", TREES[1:], ids=str)
def test_no_tree_lies_on_both_sides_of_a_stretch(spec: TreeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over slots would go in other groups than in plain decoding (docs/design.md, section 7)."""
    monkeypatch.setattr(runtime.decoding.target, "SUM_BLOCK", 16)
    target, passes = toy_target(), []
    verify = target.verify

    def watched(tree: Tree) -> Scores:
        passes.append((target.length, len(tree)))
        return verify(tree)

    monkeypatch.setattr(target, "verify", watched)
    answer = expected(greedy, 40)
    tokens, _ = decode(target, PlantedDrafter(len(PROMPT), answer, VOCAB, 3), FixedPolicy(spec), greedy)
    assert tokens == answer
    assert all(length // 16 == (length + nodes - 1) // 16 for length, nodes in passes)
    assert max(nodes for _, nodes in passes) == min(spec.nodes, max(16 - length % 16 for length, _ in passes))


def test_full_context_ends_the_answer() -> None:
    prompt = (PROMPT * 12)[: LIMITS.context - 5]
    answer = expected(greedy, 20, prompt)
    target = toy_target()
    tokens, _ = decode(target, PlantedDrafter(len(prompt), answer, VOCAB, 0), FixedPolicy(TREES[-1]), greedy, 20, prompt)
    assert tokens == answer[:5]
    assert len(prompt) + len(tokens) == LIMITS.context


def test_drafter_is_told_every_committed_token_once_with_its_features() -> None:
    class Witness(PlantedDrafter):
        def begin(self, tokens: Sequence[int] = ()) -> int:
            self.told: list[int] = list(tokens)
            return super().begin(tokens)

        def extend(self, tokens: Sequence[int], scores: Scores, rows: Sequence[int]) -> None:
            assert len(tokens) == len(rows)
            for token, row in zip(tokens, rows, strict=True):
                assert scores.features[row].tolist() == [len(self.told), token] * 3
                self.told.append(token)
            super().extend(tokens, scores, rows)

    answer = expected(greedy, 40)
    witness = Witness(len(PROMPT), answer, VOCAB, 5)
    decode(toy_target(), witness, RandomPolicy(3), greedy)
    assert witness.told == [*PROMPT, *answer[:-1]]


def test_sampled_tokens_have_the_targets_distribution() -> None:
    """Chi-squared over the first two sampled tokens after prefill, through trees that cover some of the vocabulary."""
    from scipy.stats import chisquare

    count = 4000
    seen = np.zeros((VOCAB, VOCAB))
    for seed in range(count):
        drafter = PlantedDrafter(len(PROMPT), [], VOCAB, seed)
        (first, second), _ = decode(toy_target(), drafter, FixedPolicy(TreeSpec(6, 2, 4)), sampled(seed), 2)
        seen[first, second] += 1
    first = np.exp(toy_logits(PROMPT).astype(np.float64))
    joint = np.stack([np.exp(toy_logits([*PROMPT, token]).astype(np.float64)) for token in range(VOCAB)])
    joint = (first / first.sum())[:, None] * joint / joint.sum(-1, keepdims=True)
    often = joint * count >= 5
    observed = [*seen[often], seen[~often].sum()]
    assert chisquare(observed, [*(joint[often] * count), joint[~often].sum() * count]).pvalue > 1e-3


def test_a_tree_below_another_root_is_an_error_and_not_an_answer() -> None:
    class Lost(NoDrafter):
        def draft(self, root: int, spec: TreeSpec, growth: object = None) -> Tree:
            return Tree.chain([(root + 1) % VOCAB, root])

    with pytest.raises(EngineFailure, match="does not hang where it should") as caught:
        decode(toy_target(), Lost(), FixedPolicy(TREES[1]), greedy)
    assert caught.value.stage == "draft"
