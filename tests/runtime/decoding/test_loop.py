"""The loop on a toy target: with any drafter and any policy, greedy or sampled, it gives the tokens and the cache of plain decoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import runtime.decoding.target
from policy import PLAIN, FixedPolicy, Observation, Outcome, Policy, TreeSpec
from runtime.decoding.drafter import Drafter
from runtime.decoding.loop import Round, begin, prefill, rounds
from runtime.decoding.sampling import Sampler, TargetOutput, greedy, uniforms
from runtime.decoding.target import Target
from runtime.decoding.tree import Tree
from runtime.drafters.ngram import NgramDrafter
from runtime.drafters.none import NoDrafter
from runtime.errors import EngineFailure
from tests.support.fakes import LIMITS, VOCAB, toy_logits, toy_target
from tests.support.planted import DummyRowDrafter, PlantedDrafter

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
TREES = [PLAIN, TreeSpec(4, 3, 1), TreeSpec(8, 7, 1), TreeSpec(7, 1, 6), TreeSpec(16, 4, 4), TreeSpec(64, 8, 8)]


class RandomPolicy:
    """Chooses a random tree every round, and records all observations and outcomes."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.chosen: list[TreeSpec] = []
        self.outcomes: list[Outcome] = []
        self.observations: list[tuple[int, int, list[float]]] = []

    def begin(self) -> None:
        """Nothing to do."""

    def choose(self, observation: Observation) -> TreeSpec:
        self.observations.append((observation.length, observation.room, observation.features.tolist()))
        self.chosen.append(TREES[int(self._random.integers(len(TREES)))])
        return self.chosen[-1]

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def sampled(seed: int) -> Sampler:
    """A sampler by inverse CDF in numpy, with one uniform per position as on devices."""
    table = uniforms(seed, LIMITS.capacity)

    def sampler(output: TargetOutput, row: int, position: int) -> int:
        weights = np.exp(output.logits[row].astype(np.float64))
        return int(np.searchsorted(np.cumsum(weights) / weights.sum(), table[position], side="right"))

    return sampler


def decode(
    target: Target, drafter: Drafter, policy: Policy, sampler: Sampler, budget: int = 40, prompt: Sequence[int] = PROMPT
) -> tuple[list[int], list[Round]]:
    begin(target, drafter, prompt)
    *waiting, root = prefill(target, drafter, sampler, prompt)
    assert waiting == [None] * (len(waiting))
    assert root is not None
    done = list(rounds(target, drafter, policy, sampler, root, budget - 1))
    return [root.token, *(token for each in done for token in each.tokens)], done


def expected(sampler: Sampler, count: int, prompt: Sequence[int] = PROMPT) -> list[int]:
    """The tokens of plain decoding, computed without the loop."""
    context = list(prompt)
    for _ in range(count):
        logits = toy_logits(context)[None]
        output = TargetOutput({"next_token": logits.argmax(-1)[None], "logits": logits[None]}, Tree.chain([0]), len(context) - 1, 1)
        context.append(sampler(output, 0, len(context)))
    return context[len(prompt) :]


@pytest.mark.parametrize("sampler", [greedy, sampled(1), sampled(2)], ids=["greedy", "sampled-1", "sampled-2"])
@pytest.mark.parametrize("spec", TREES, ids=str)
def test_every_tree_gives_the_plain_answer(sampler: Sampler, spec: TreeSpec) -> None:
    answer = expected(sampler, 40)
    for drafter in (
        NoDrafter(),
        NgramDrafter(),
        DummyRowDrafter(VOCAB),
        *(PlantedDrafter(len(PROMPT), answer, VOCAB, s) for s in range(4)),
    ):
        if spec == PLAIN and isinstance(drafter, DummyRowDrafter):
            continue  # it ignores the requested tree
        tokens, _ = decode(toy_target(), drafter, FixedPolicy(spec), sampler)
        assert tokens[:40] == answer


@pytest.mark.parametrize("seed", range(8))
def test_any_policy_gives_the_plain_answer_and_the_plain_cache(seed: int) -> None:
    answer, target = expected(greedy, 40), toy_target()
    tokens, done = decode(target, PlantedDrafter(len(PROMPT), answer, VOCAB, seed), RandomPolicy(seed), greedy)
    assert tokens == answer
    assert max(len(each.tokens) for each in done) > 3  # some draft tokens were accepted
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
        assert outcome.pass_seconds == each.verify_seconds
        assert each.draft_seconds < outcome.rest_seconds < each.seconds - each.verify_seconds  # the choice of tokens is in neither
    unread = len(PROMPT)
    for outcome in policy.outcomes:
        assert outcome.unread == unread
        unread = outcome.tokens + (0 if outcome.spec.depth else unread)
    lengths = [length for length, _, _ in policy.observations]
    assert lengths == [len(PROMPT) + sum(len(each.tokens) for each in done[:i]) for i in range(len(done))]
    context = [*PROMPT, *answer]
    for length, _, features in policy.observations:  # features of the last committed position
        assert features == [length - 1, context[length - 1]] * 3


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 40])
def test_budget_is_met_exactly(budget: int) -> None:
    answer = expected(greedy, 60)
    for seed in range(3):
        tokens, _ = decode(toy_target(), PlantedDrafter(len(PROMPT), answer, VOCAB, seed), FixedPolicy(TREES[-1]), greedy, budget)
        assert tokens == answer[:budget]


@pytest.mark.parametrize("spec", TREES[1:], ids=str)
def test_no_tree_crosses_the_boundary_of_a_sum_block(spec: TreeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attention would be summed in other groups than in plain decoding (docs/design.md, section 7)."""
    monkeypatch.setattr(runtime.decoding.target, "SUM_BLOCK", 16)
    target, passes = toy_target(), []
    verify = target.verify

    def recorded(tree: Tree) -> TargetOutput:
        passes.append((target.length, len(tree)))
        return verify(tree)

    monkeypatch.setattr(target, "verify", recorded)
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


def test_drafter_gets_every_committed_token_once_with_its_features() -> None:
    class CheckingDrafter(PlantedDrafter):
        def begin(self, tokens: Sequence[int] = ()) -> int:
            self.committed: list[int] = list(tokens)
            return super().begin(tokens)

        def extend(self, tokens: Sequence[int], output: TargetOutput, rows: Sequence[int]) -> None:
            assert len(tokens) == len(rows)
            for token, row in zip(tokens, rows, strict=True):
                assert output.features[row].tolist() == [len(self.committed), token] * 3
                self.committed.append(token)
            super().extend(tokens, output, rows)

    answer = expected(greedy, 40)
    drafter = CheckingDrafter(len(PROMPT), answer, VOCAB, 5)
    decode(toy_target(), drafter, RandomPolicy(3), greedy)
    assert drafter.committed == [*PROMPT, *answer[:-1]]


def test_sampled_tokens_have_the_targets_distribution() -> None:
    """Chi-squared test of the first two sampled tokens, with trees that contain a part of the vocabulary."""
    from scipy.stats import chisquare

    count = 2000
    seen = np.zeros((VOCAB, VOCAB))
    for seed in range(count):
        drafter = PlantedDrafter(len(PROMPT), [], VOCAB, seed)
        (first, second), _ = decode(toy_target(), drafter, FixedPolicy(TreeSpec(6, 2, 4)), sampled(seed), 2)
        seen[first, second] += 1
    alone = np.exp(toy_logits(PROMPT).astype(np.float64))
    joint = np.stack([np.exp(toy_logits([*PROMPT, token]).astype(np.float64)) for token in range(VOCAB)])
    joint = (alone / alone.sum())[:, None] * joint / joint.sum(-1, keepdims=True)
    often = joint * count >= 5
    observed = [*seen[often], seen[~often].sum()]
    assert chisquare(observed, [*(joint[often] * count), joint[~often].sum() * count]).pvalue > 1e-3


def test_a_tree_with_the_wrong_root_raises() -> None:
    class WrongRootDrafter(NoDrafter):
        def draft(self, root: int, spec: TreeSpec, growth: object = None) -> Tree:
            return Tree.chain([(root + 1) % VOCAB, root])

    with pytest.raises(EngineFailure, match="wrong root token") as caught:
        decode(toy_target(), WrongRootDrafter(), FixedPolicy(TREES[1]), greedy)
    assert caught.value.stage == "draft"


@pytest.mark.parametrize("length", [1, 5, 6, 8])
def test_a_single_row_takes_the_same_kernel_as_several(length: int) -> None:
    """On a processor with another kernel for one row: no pass has one row, prefill or verification, nor is padding committed."""
    prompt = PROMPT[:length]
    for target in (toy_target(single_row_kernel=True), toy_target()):
        target.use_one_kernel()
        assert target.length == 0
        for policy in (FixedPolicy(PLAIN), FixedPolicy(TREES[1])):
            tokens, _ = decode(target, NgramDrafter(), policy, greedy, prompt=prompt)
            target.cache_valid = True
            assert tokens == expected(greedy, 40, prompt)
            assert target.length == length + 39
            target.truncate(0)
