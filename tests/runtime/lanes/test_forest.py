"""The forest on a toy target: any arrivals, policies, samplings, ends and faults give every request the answer that it has alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from policy import PLAIN, FixedPolicy, PartialTree, Policy, TreeSpec
from policy.base import Observation, Outcome
from policy.forest.history import first_record
from runtime.errors import EngineFailure
from runtime.lanes.forest import Forest
from runtime.lanes.lane import Lane
from runtime.sampling_params import SamplingParams
from tests.support.constraints import TOY_CONSTRAINTS
from tests.support.fakes import VOCAB
from tests.support.plain_sampling import any_rules
from tests.support.planted import PlantedDrafter
from tests.support.toy_lanes import LIMITS, ToyLanesDraft, ToyLanesEngine, alone, answer_of, run_all, toy_forest, toy_lane

TREES = [PLAIN, TreeSpec(4, 3, 1), TreeSpec(5, 1, 4), TreeSpec(16, 4, 4), TreeSpec(40, 6, 4)]


class AnyPolicy:
    """Chooses random trees, and decides at random between levels."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def begin(self) -> None:
        """Nothing to do."""

    def choose(self, observation: Observation) -> TreeSpec:
        assert observation.features.shape == (6,)
        return TREES[int(self._random.integers(len(TREES)))]

    def should_expand(self, partial_tree: PartialTree) -> bool:
        return bool(self._random.random() < 0.7)

    def num_nodes(self, partial_tree: PartialTree) -> int:
        return int(self._random.integers(1, partial_tree.spec.nodes + 1))

    def observe(self, outcome: Outcome) -> None:
        assert outcome.tokens >= 1


def any_request(random: np.random.Generator, forest: Forest) -> tuple[Lane, list[int], SamplingParams]:
    """A random prompt, often with the beginning of another, random sampling and a random policy."""
    shared = [3, 1, 4, 1, 5, 9, 2, 6] * int(random.integers(0, 20))
    prompt = [*shared, *random.integers(0, VOCAB - 1, int(random.integers(1, 40))).tolist()]
    sampling = {} if random.random() < 0.5 else {"temperature": float(random.uniform(0.3, 1.5)), "seed": int(random.integers(1000))}
    params = SamplingParams(max_new_tokens=int(random.integers(1, 60)), **sampling)
    if random.random() < 0.4:
        params = any_rules(random, VOCAB, params.max_new_tokens or 1)
    if random.random() < 0.3:
        params = replace(params, constraint=TOY_CONSTRAINTS[int(random.integers(len(TOY_CONSTRAINTS)))])
    policies: list[Policy | None] = [
        None,
        None,
        AnyPolicy(int(random.integers(1000))),
        FixedPolicy(TREES[int(random.integers(len(TREES)))]),
    ]
    policy = policies[int(random.integers(len(policies)))]
    own = None
    if random.random() < 0.3:
        own = PlantedDrafter(len(prompt), alone(prompt, params), VOCAB, int(random.integers(1000)))
        policy = policy if isinstance(policy, FixedPolicy) else FixedPolicy(TreeSpec(16, 4, 4))
    return toy_lane(forest, prompt, params, policy, own), prompt, params


@pytest.mark.parametrize("seed", range(6))
def test_any_mixture_of_requests_gives_every_answer_as_alone(seed: int) -> None:
    """Law: arrivals, neighbours, policies, lookups, cancelled and failing requests, a full cache and a failing draft change nothing."""
    random = np.random.default_rng(seed)
    forest = toy_forest(5, pages=[None, 7][seed % 2], seed=seed)
    assert isinstance(forest.draft, ToyLanesDraft)
    forest.draft.failing = seed % 3 == 0
    begun: list[tuple[Lane, list[int], SamplingParams]] = []

    def arrive() -> None:
        while len(forest.lanes) + len(forest.aside) < 5 and len(begun) < 25 and (random.random() < 0.3 or not forest.lanes):
            begun.append(any_request(random, forest))
            forest.admit(begun[-1][0])
        if forest.lanes and random.random() < 0.03:
            forest.lanes[int(random.integers(len(forest.lanes)))].request.cancelled = True

    run_all(forest, arrive)
    assert len(begun) == 25
    for lane, prompt, params in begun:
        expected, (tokens, text) = alone(prompt, params), answer_of(lane)
        assert tokens == (expected[: len(tokens)] if lane.request.stop == "cancelled" else expected)
        assert text == "".join(chr(97 + token) for token in tokens if token != VOCAB - 1)
        assert lane.request.stop in ("eos", "length", "cancelled")
    forest.prefixes.clear()
    for cache in (forest.target.cache, forest.draft.cache):
        assert cache.pool.free == cache.pool.count  # no page is lost


def several(forest: Forest, prompts: list[list[int]], **params: float) -> list[Lane]:
    lanes = [toy_lane(forest, prompt, SamplingParams(max_new_tokens=20, **params)) for prompt in prompts]  # type: ignore[arg-type]
    for lane in lanes:
        forest.admit(lane)
    return lanes


PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 0, 1, 2, 3, 3, 3, 3]]


def test_a_pass_that_fails_ends_only_the_request_that_fails_alone() -> None:
    forest = toy_forest()
    lanes = several(forest, PROMPTS)
    while any(lane.reading for lane in lanes):
        forest.cycle()
    engine = forest.target._engine
    assert isinstance(engine, ToyLanesEngine)
    lanes[1].root = engine.broken = 99
    run_all(forest)
    with pytest.raises(EngineFailure, match="verify: a pass failed inside the toy"):
        answer_of(lanes[1])
    for lane in (lanes[0], lanes[2]):
        assert answer_of(lane)[0] == alone(lane.request.prompt, lane.request.params)


def test_numbers_that_are_not_finite_end_only_their_request() -> None:
    forest = toy_forest()
    engine = forest.target._engine
    assert isinstance(engine, ToyLanesEngine)
    engine.nan = 7  # only the second prompt has it
    lanes = several(forest, [[1, 2, 3], [4, 5, 6, 7, 8], [3, 3, 3]])
    run_all(forest)
    with pytest.raises(EngineFailure, match="not finite"):
        answer_of(lanes[1])
    assert lanes[0].request.stop in ("eos", "length")


def test_the_prefix_of_a_running_and_of_a_finished_lane_is_not_computed_again() -> None:
    system = list(np.random.default_rng(1).integers(0, VOCAB - 1, 200).tolist())
    forest = toy_forest()
    first = several(forest, [[*system, 1]])[0]
    while first.reading:
        forest.cycle()
    second = several(forest, [[*system, 2, 3]])[0]
    run_all(forest)
    third = several(forest, [[*first.tokens, 5, 5]])[0]
    run_all(forest)
    assert first.request.counters.cached_prompt_tokens == 0
    assert second.request.counters.cached_prompt_tokens >= 190
    assert third.request.counters.cached_prompt_tokens >= len(first.tokens) - 16
    for lane in (first, second, third):
        assert answer_of(lane)[0] == alone(lane.request.prompt, lane.request.params)


def test_a_prompt_does_not_stop_the_others() -> None:
    forest = toy_forest()
    running = several(forest, [[1, 2, 3]])[0]
    while running.reading:
        forest.cycle()
    forest.admit(toy_lane(forest, [5] * 300, SamplingParams(max_new_tokens=5)))
    before = len(running.tokens)
    for _ in range(3):
        forest.cycle()
    assert len(running.tokens) >= before + 3
    assert any(lane.reading for lane in forest.lanes)


@pytest.mark.parametrize("together", [True, False])
def test_a_chunk_is_read_in_the_pass_over_the_trees_if_the_graph_takes_chunks(together: bool) -> None:
    forest = toy_forest(draft=False)
    forest.target.takes_chunks = together
    running = several(forest, PROMPTS[:2])
    while any(lane.reading for lane in running):
        forest.cycle()
    forest.admit(toy_lane(forest, [5] * 300, SamplingParams(max_new_tokens=5)))
    engine = forest.target._engine
    assert isinstance(engine, ToyLanesEngine)
    engine.passes.clear()
    forest.cycle()
    assert engine.passes == ([3] if together else [1, 2])


def test_a_chunk_that_fails_ends_only_its_request() -> None:
    forest = toy_forest()
    running = several(forest, PROMPTS[:2])
    while any(lane.reading for lane in running):
        forest.cycle()
    failing = toy_lane(forest, [5] * 100 + [99], SamplingParams(max_new_tokens=5))
    engine = forest.target._engine
    assert isinstance(engine, ToyLanesEngine)
    engine.broken = 99
    forest.admit(failing)
    run_all(forest)
    with pytest.raises(EngineFailure, match="prefill: a pass failed inside the toy"):
        answer_of(failing)
    for lane in running:
        assert answer_of(lane)[0] == alone(lane.request.prompt, lane.request.params)


def test_a_lane_that_decodes_plainly_does_not_read_its_draft() -> None:
    forest = toy_forest()
    lane = toy_lane(forest, [1, 2, 3] * 20, SamplingParams(max_new_tokens=60), FixedPolicy(PLAIN))
    forest.admit(lane)
    assert lane.draft is not None
    run_all(forest)
    assert lane.draft.whole == 0
    assert answer_of(lane)[0] == alone(lane.request.prompt, lane.request.params)


def test_an_answer_may_fill_the_context() -> None:
    forest = toy_forest()
    prompts = [[at % 11] * 3 for at in range(4)]
    lanes = [toy_lane(forest, prompt, SamplingParams(max_new_tokens=None, temperature=1.0, seed=at)) for at, prompt in enumerate(prompts)]
    for lane in lanes:
        lane.request.stop_tokens = frozenset()
        forest.admit(lane)
    run_all(forest)
    assert [len(lane.tokens) + 1 for lane in lanes] == [LIMITS.context] * 4


def test_a_lane_that_is_put_aside_while_it_reads_its_prompt_reads_all_of_it() -> None:
    forest = toy_forest(2, pages=10)
    first, second = several(forest, [[1, 2, 3], [4, 5, 6] * 60])
    forest.cycle()
    while not second.tokens:
        forest.cycle()
    assert second.unread
    taken = forest.target.cache.pool.take_highest(forest.target.cache.pool.free)
    forest._reserve(first, 2 * LIMITS.tree_nodes + len(first.cache.pages) * 64)
    assert forest.aside == [second]
    forest.target.cache.pool.give_back(taken)
    run_all(forest)
    for lane in (first, second):
        assert answer_of(lane)[0] == alone(lane.request.prompt, lane.request.params)
        assert lane.request.counters.cached_prompt_tokens == 0


def test_trees_that_the_row_budget_did_not_size_do_not_teach_it() -> None:
    forest = toy_forest()
    params = SamplingParams(max_new_tokens=60)
    prompt = [1, 2, 3]
    lane = toy_lane(forest, prompt, params, FixedPolicy(TreeSpec(16, 4, 4)), PlantedDrafter(3, alone(prompt, params), VOCAB, 1))
    forest.admit(lane)
    run_all(forest)
    assert lane.request.counters.accepted > 2
    assert lane.history.own.trees == 0
    assert forest.budget.pool == first_record()


def test_the_row_budget_hears_the_rows_of_the_largest_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    forest, heard = toy_forest(), list[tuple[int, int]]()
    monkeypatch.setattr(forest.budget, "observe_round", lambda tokens, rows, milliseconds, widest: heard.append((rows, widest)))
    params = SamplingParams(max_new_tokens=12)
    for tree in (PLAIN, TreeSpec(6, 5, 1)):
        prompt = [1, 2, 3]
        forest.admit(toy_lane(forest, prompt, params, FixedPolicy(tree), PlantedDrafter(3, alone(prompt, params), VOCAB, 1)))
    run_all(forest)
    assert all(1 <= widest <= 6 and rows in (widest, widest + 1) for rows, widest in heard)
    assert max(widest for _, widest in heard) > 1


class Watching(AnyPolicy):
    """Notes the load that it is told."""

    def __init__(self) -> None:
        super().__init__(0)
        self.seen: list[tuple[int, int]] = []

    def choose(self, observation: Observation) -> TreeSpec:
        self.seen.append((observation.lanes, observation.waiting))
        return super().choose(observation)


def test_a_policy_sees_how_many_requests_run_and_wait() -> None:
    forest, policy = toy_forest(), Watching()
    forest.admit(toy_lane(forest, [1, 2, 3], SamplingParams(max_new_tokens=40), policy))
    forest.cycle()
    forest.cycle()
    several(forest, [[4] * 60, [5] * 60])
    run_all(forest)
    assert policy.seen[0] == (1, 0)
    assert (1, 2) in policy.seen
    assert max(lanes for lanes, _ in policy.seen) > 1


def test_nothing_is_kept_after_forget_of_a_lane_whose_reader_has_left() -> None:
    forest = toy_forest()
    for lane in (lanes := several(forest, [[1, 2, 3] * 20, [4, 5, 6]])):
        while lane.reading:
            forest.cycle()
    lanes[0].active.end()
    forest.forget()
    forest.cycle()
    assert not forest.prefixes.find([*lanes[0].tokens, 5], (), None).tokens
    run_all(forest)
    assert answer_of(lanes[1])[0] == alone(lanes[1].request.prompt, lanes[1].request.params)
