"""Parameters that change scores along the answer, or exclude tokens: against a plain reference, against transformers, by distribution, and
the law that trees change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from policy import FixedPolicy
from runtime.decoding.gumbel import host_samplers, scratch_buffers
from runtime.decoding.path_rules import PathRules
from runtime.decoding.sampling import TargetOutput, greedy
from runtime.decoding.tree import Tree
from runtime.decoding.truncation import truncate
from runtime.sampling_params import SamplingParams
from tests.runtime.decoding.test_loop import PROMPT, TREES, RandomPolicy, decode
from tests.support.fakes import VOCAB, toy_logits, toy_target
from tests.support.plain_sampling import any_rules, plain_answer, probabilities, ruled, toy_rules
from tests.support.planted import PlantedDrafter

STOP = frozenset({VOCAB - 1})
SAMPLERS = host_samplers(VOCAB)


@pytest.mark.parametrize("seed", range(40))
def test_any_parameters_any_tree_give_the_plain_answer(seed: int) -> None:
    """Law. The planted drafter knows the answer, so that long paths are accepted."""
    random = np.random.default_rng(seed)
    params = any_rules(random, VOCAB, 40)
    answer = plain_answer(toy_logits, PROMPT, params, (), 40)  # the loop goes on behind stop tokens
    policies = [RandomPolicy(seed), FixedPolicy(TREES[seed % len(TREES)])]
    accepted = 0
    for policy in policies:
        rules = PathRules(params, PROMPT, (), [[ord(each) - 97 for each in word] for word in params.bad_words])
        sampler = SAMPLERS(params, rules if params.changes_scores else None)
        tokens, done = decode(toy_target(), PlantedDrafter(len(PROMPT), answer, VOCAB, seed), policy, sampler)
        assert tokens[:40] == answer
        accepted += sum(len(each.tokens) - 1 for each in done)
    assert accepted > 0


def scores_of(params: SamplingParams, logits: np.ndarray, prompt: list[int], answer: list[int], stop: Any = STOP) -> np.ndarray:
    rules = toy_rules(params, prompt, stop)
    assert rules is not None
    for token in answer:
        rules.push(token)
    scores = np.empty(len(logits))
    rules.apply(logits, scores)
    return scores


@pytest.mark.parametrize("seed", range(30))
def test_scores_equal_the_plain_reference(seed: int) -> None:
    random = np.random.default_rng(seed)
    params = any_rules(random, VOCAB, 30)
    if not params.changes_scores:
        return
    logits = random.normal(size=VOCAB).astype(np.float32) * 3
    prompt, answer = random.integers(0, VOCAB, 9).tolist(), random.integers(0, VOCAB, int(random.integers(0, 30))).tolist()
    np.testing.assert_allclose(
        scores_of(params, logits, prompt, answer), ruled(logits, prompt, answer, params, STOP), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_the_repetition_penalty_is_transformers(penalty: float) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    logits = np.random.default_rng(1).normal(size=VOCAB).astype(np.float32)
    text = [3, 1, 4, 1, 5]
    theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([text]), torch.from_numpy(logits[None]))
    ours = scores_of(SamplingParams(repetition_penalty=penalty), logits, text[:3], text[3:])
    np.testing.assert_allclose(ours, theirs[0].numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    "setting", [{"min_p": 0.1}, {"min_p": 0.9}, {"typical_p": 0.3}, {"typical_p": 0.9}, {"top_k": 7, "typical_p": 0.6}]
)
@pytest.mark.parametrize("vocab", [12, 3000])
def test_truncation_keeps_what_transformers_keeps(vocab: int, setting: dict[str, Any]) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    scaled = np.random.default_rng(vocab).normal(size=vocab) * 2
    theirs = torch.from_numpy(scaled.copy()[None])
    for name, value in setting.items():
        warper = {
            "top_k": transformers.TopKLogitsWarper,
            "min_p": transformers.MinPLogitsWarper,
            "typical_p": transformers.TypicalLogitsWarper,
        }[name]
        theirs = warper(value)(None, theirs)
    truncate(scaled, SamplingParams(temperature=1, **setting), scratch_buffers(vocab)[1:])
    np.testing.assert_array_equal(np.isfinite(scaled), np.isfinite(theirs[0].numpy()))


@pytest.mark.parametrize(
    "setting",
    [
        {"min_p": 0.05, "temperature": 2.5},
        {"typical_p": 0.8, "temperature": 4.0},
        {"top_k": 9, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.97, "temperature": 4.0},
        {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.3, "logit_bias": {2: 1.5, 3: -2}, "temperature": 1.0},
    ],
    ids=str,
)
def test_draws_have_the_distribution(setting: dict[str, Any]) -> None:
    from scipy.stats import chisquare

    logits, count, answer = np.random.default_rng(3).normal(size=VOCAB).astype(np.float32) * 2, 20_000, [1, 2, 2, 5]
    params = SamplingParams(seed=9, **setting)
    output = TargetOutput({"logits": logits[None, None]}, Tree.chain([0]), 0, 1)
    tokens = []
    for position in range(count):
        rules = toy_rules(params, PROMPT, STOP)
        for token in answer if rules else ():
            rules.push(token)
        tokens.append(SAMPLERS(params, rules)(output, 0, position))
    wanted = probabilities(ruled(logits, PROMPT, answer if params.changes_scores else [], params, STOP), params)
    assert set(tokens) <= set(np.flatnonzero(wanted).tolist())
    assert (wanted > 0).sum() > 3
    seen = np.bincount(tokens, minlength=VOCAB)[wanted > 0]
    assert chisquare(seen, wanted[wanted > 0] * count).pvalue > 1e-3


def test_bad_words_look_at_the_answer_only() -> None:
    params = SamplingParams(bad_words=["bcd", "f"])
    scores = scores_of(params, np.zeros(VOCAB), [1, 2], [0, 1, 2])
    assert np.flatnonzero(np.isinf(scores)).tolist() == [3, 5]
    assert np.flatnonzero(np.isinf(scores_of(params, np.zeros(VOCAB), [1, 2], []))).tolist() == [5]
    assert np.flatnonzero(np.isinf(scores_of(params, np.zeros(VOCAB), [1, 2], [2]))).tolist() == [5]


def test_requests_without_such_parameters_keep_their_samplers() -> None:
    assert SAMPLERS(SamplingParams()) is greedy
    assert not SamplingParams(
        temperature=1, top_k=3, top_p=0.5, min_p=0.1, typical_p=0.5, stop_token_ids=[3], ignore_eos=True
    ).changes_scores
    assert toy_rules(SamplingParams(ignore_eos=True), PROMPT, STOP) is None
