"""Recorded answers and their replay: simulated rounds equal real ones, and the fits and the oracle follow from them."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from time import thread_time

import numpy as np
import pytest

from export.tuning.replay.calibrate import fit_acceptance
from export.tuning.replay.simulation import accepted_tokens, best_fixed_tree, fixed_trees, num_candidates, oracle, replay
from export.tuning.replay.traces import Trace
from export.tuning.tune import Candidates
from policy import PLAIN, Calibration, CostModel, FixedPolicy, Observation, Outcome, PartialTree, TreeSpec
from runtime import Decoder, SamplingParams
from tests.support.eagle_engines import prompt_of
from tests.support.toy_answers import LATENCY as TOY_LATENCY
from tests.support.toy_answers import TREE, toy_answers
from tests.support.traces import trace_prompt
from tests.support.tunings import CALIBRATION, LATENCY

TREES = [PLAIN, TreeSpec(2, 1, 1), TreeSpec(5, 3, 2), TreeSpec(7, 4, 2), TreeSpec(9, 2, 3), TreeSpec(5, 4, 1)]


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.7, seed=3)], ids=["greedy", "sampled"])
def test_replayed_rounds_equal_real_rounds(eagle_decoder: Decoder, sampling: SamplingParams) -> None:
    """Everything else in tuning relies on this: the rounds of a fixed tree follow exactly from the trace."""
    answers = [trace_prompt(eagle_decoder, sampling)]
    for tree in TREES:
        stats = eagle_decoder.generate(prompt_of(20), replace(sampling, max_new_tokens=90), policy=FixedPolicy(tree)).stats
        result = replay(FixedPolicy(tree), answers, LATENCY)
        assert (result.cycles, result.tokens) == (stats.cycles, stats.new_tokens - 1), tree


def test_replayed_cost_model_decides_as_in_service(eagle_decoder: Decoder) -> None:
    answers = [trace_prompt(eagle_decoder, SamplingParams())]
    rounds: list[tuple[int, int]] = []

    class RecordingCostModel(CostModel):
        def observe(self, outcome: Outcome) -> None:
            rounds.append((outcome.nodes, outcome.tokens))
            super().observe(dataclasses.replace(outcome, seconds=0.0))  # the replay's milliseconds are not this machine's

    model = RecordingCostModel(CALIBRATION, LATENCY)
    stats = eagle_decoder.generate(prompt_of(20), SamplingParams(max_new_tokens=90), policy=model).stats
    result = replay(RecordingCostModel(CALIBRATION, LATENCY), answers, LATENCY)
    assert (result.cycles, result.tokens) == (stats.cycles, stats.new_tokens - 1)
    # In service the last tree is clipped to the tokens that are left, which a replay does not do.
    assert rounds[: stats.cycles - 1] == rounds[stats.cycles : -1]
    assert len({nodes for nodes, _ in rounds}) > 2
    assert replay(CostModel(CALIBRATION, LATENCY), answers, LATENCY).tokens == result.tokens


def test_trees_that_stop_growing_early_change_no_token(eagle_decoder: Decoder) -> None:
    """With random decisions at every level and in every round."""
    expected = eagle_decoder.generate(prompt_of(33), SamplingParams(max_new_tokens=120), policy=FixedPolicy(PLAIN)).tokens

    class RandomGrowth:
        def __init__(self, seed: int) -> None:
            self.random = np.random.default_rng(seed)
            self.levels: list[int] = []

        def begin(self) -> None:
            """Keeps its random numbers."""

        def choose(self, observation: Observation) -> TreeSpec:
            return TREES[int(self.random.integers(len(TREES)))]

        def should_expand(self, partial_tree: PartialTree) -> bool:
            assert len(partial_tree.scores) == num_candidates(partial_tree.spec.width, partial_tree.level)
            assert len(partial_tree.last_level_scores) == partial_tree.spec.width ** min(partial_tree.level, 2)
            self.levels.append(partial_tree.level)
            return bool(self.random.random() < 0.6)

        def num_nodes(self, partial_tree: PartialTree) -> int:
            return int(self.random.integers(1, partial_tree.spec.nodes + 1))

        def observe(self, outcome: Outcome) -> None:
            """Learns nothing."""

    for seed in range(6):
        policy = RandomGrowth(seed)
        assert eagle_decoder.generate(prompt_of(33), SamplingParams(max_new_tokens=120), policy=policy).tokens == expected
        assert {1, 2} <= set(policy.levels)
        sampling = SamplingParams(temperature=0.8, seed=seed)
        sampled = eagle_decoder.generate(prompt_of(33), replace(sampling, max_new_tokens=60), policy=FixedPolicy(PLAIN)).tokens
        assert eagle_decoder.generate(prompt_of(33), replace(sampling, max_new_tokens=60), policy=RandomGrowth(seed)).tokens == sampled


def test_accepted_tokens_grow_with_the_number_of_nodes(eagle_decoder: Decoder) -> None:
    trace = trace_prompt(eagle_decoder, SamplingParams())[2]
    for position in range(len(trace)):
        counts = [accepted_tokens(trace, position, 4, nodes) for nodes in range(1, 20)]
        assert counts == sorted(counts)  # the best n nodes are among the best n + 1
        assert counts[0] == 0
        on_path = int((trace.path[position] >= 0).sum())
        assert counts[-1] <= on_path
        assert accepted_tokens(trace, position, 4, 100) == on_path
    assert trace.on_path().sum() == (trace.path >= 0).sum()


def test_oracle_beats_every_tree_and_the_best_tree_beats_the_others(eagle_decoder: Decoder) -> None:
    answers = [trace_prompt(eagle_decoder, SamplingParams(), length) for length in (5, 20)]
    trees = fixed_trees((1, 2, 3), (1, 2, 3), 8)
    best, result = best_fixed_tree(answers, LATENCY, trees)
    assert best in trees
    assert all(replay(FixedPolicy(tree), answers, LATENCY).rate <= result.rate for tree in trees)
    assert oracle(answers, LATENCY, trees, result.rate).rate >= result.rate
    assert {tree.nodes for tree in fixed_trees((2,), (3,), 64, sizes=(1, 4, 8, 64))} == {1, 4, 8}


def test_a_policy_pays_for_its_own_time() -> None:
    class Slow(FixedPolicy):
        def choose(self, observation: Observation) -> TreeSpec:
            end = thread_time() + 0.001
            while thread_time() < end:
                pass
            return super().choose(observation)

    given = toy_answers(2)
    free, charged = (replay(Slow(PLAIN), given, TOY_LATENCY, charge) for charge in (False, True))
    assert (free.tokens, free.cycles) == (charged.tokens, charged.cycles)
    assert free.milliseconds == replay(FixedPolicy(PLAIN), given, TOY_LATENCY).milliseconds
    assert charged.milliseconds >= free.milliseconds + charged.cycles


def test_the_fixed_tree_has_the_guard_of_the_others() -> None:
    """Where no draft token is right, all of them soon decode plainly."""
    hopeless = [toy_answers(2, 400)[1]]
    candidates = Candidates(TreeSpec(3, 2, 1), Calibration(1.0, 0.0, 0.0, 1.0, 0.1, TREE), {})
    plain = replay(FixedPolicy(PLAIN), hopeless, TOY_LATENCY).rate
    assert replay(FixedPolicy(candidates.fixed_tree), hopeless, TOY_LATENCY).rate < 0.8 * plain
    for name in candidates.policies(TOY_LATENCY, None):
        assert candidates.replay(name, hopeless, TOY_LATENCY, None).rate > 0.9 * plain, name


def test_fit_finds_the_probabilities_that_made_the_trace() -> None:
    random, count = np.random.default_rng(0), 6000
    scores = -random.exponential(2, (count, 1)).astype(np.float32)
    on_path = random.random((count, 1)) < 1 / (1 + np.exp(-(1.3 * scores + 0.4)))
    trace = Trace(1, 1, scores, np.ones(1, np.int8), np.where(on_path, 0, -1).astype(np.int16), np.zeros((count, 1), np.float16))
    slope, level, bias = fit_acceptance([{1: trace}], 1)
    assert abs(slope - 1.3) < 0.12
    assert abs(level + bias - 0.4) < 0.12  # with one level only their sum is determined


def test_latency_model_interpolates_and_extrapolates() -> None:
    assert LATENCY.verify(1, 50) == 10
    assert LATENCY.verify(8, 100) == 17
    assert LATENCY.verify(2, 100) == 11
    assert LATENCY.verify(15, 100) == 24
    assert LATENCY.verify(1, 550) == 15
    assert LATENCY.draft(0, 0) == 0
    assert LATENCY.draft(2, 1) == 1.5
    assert LATENCY.draft(3, 6) == 12
    assert LATENCY.round(1, 0, 0, 100) == 10.5
