"""The steps of resps-tune after recording and measuring, as plain functions: split, fit, train, simulate, and confirm by wall clock."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from policy import (
    PLAIN,
    Calibration,
    CorrectedLatency,
    CorrectedRounds,
    CostModel,
    FixedPolicy,
    Guarded,
    LatencyModel,
    Policy,
    TreeSpec,
    watch,
)
from runtime import Decoder, SamplingParams

from .learning.curriculum import TrainingSetup, measure_policy_ms, num_runs, train_policies
from .learning.ppo import TrainingData
from .learning.trained import TrainedPolicy
from .replay.calibrate import fit_cost_model
from .replay.grid import TreeGrid
from .replay.record import MIN_PROMPTS, Progress, as_chat
from .replay.simulation import Answers, ReplayResult, any_trace, best_fixed_tree, fixed_trees, oracle, replay

_log = logging.getLogger("resps")

CLOSED = ("none", "fixed", "cost-model")
"""Policies that are not trained, the simplest first."""

MIN_RUN_SECONDS = 5.0  # a shorter training run learns nothing


@dataclass(frozen=True)
class Split:
    """Recorded answers: to train with, to select weights with (validation), and to test with."""

    train: Answers
    validation: Answers
    test: Answers

    @property
    def train_and_validation(self) -> Answers:
        """Everything but the test answers: what the fixed tree and the cost model are fitted to."""
        return [*self.train, *self.validation]


def split(answers: Answers) -> Split:
    """A third for the test, and a quarter of the others for validation."""
    others = [answer for index, answer in enumerate(answers) if index % 3]
    return Split([answer for index, answer in enumerate(others) if index % 4], others[::4], answers[::3])


@dataclass(frozen=True)
class Candidates:
    """The policies that compete: the best fixed tree, the cost model's calibration, and the learned policies by name."""

    fixed_tree: TreeSpec
    calibration: Calibration
    learned: Mapping[str, TrainedPolicy]

    def policies(self, latency: LatencyModel, sizes: tuple[int, ...] | None) -> dict[str, Policy]:
        """Every policy as it runs in service: those that decide have the watchdog, whose pauses the fixed tree has as well. Plain decoding
        and the fixed tree come first. ``sizes``: numbers of nodes that may be verified (None: any)."""
        names = ("fixed", "cost-model", *self.learned)
        costs = {name: CorrectedLatency(latency.alone()) for name in names}  # each has what its own rounds teach
        rounds = {name: CorrectedRounds(each) for name, each in costs.items()}
        adaptive: dict[str, Policy] = {"cost-model": CostModel(self.calibration, rounds["cost-model"], sizes)}
        adaptive |= {name: trained.runtime_policy() for name, trained in self.learned.items()}
        watched = {name: watch(policy, self.fixed_tree, rounds[name]) for name, policy in adaptive.items()}
        fixed = Guarded(FixedPolicy(self.fixed_tree), costs["fixed"])
        return {"none": FixedPolicy(PLAIN), "fixed": fixed, **watched}

    def replay(self, name: str, answers: Answers, latency: LatencyModel, sizes: tuple[int, ...] | None) -> ReplayResult:
        """Replay one of ``policies``, with the time of its decisions."""
        return replay(self.policies(latency, sizes)[name], answers, latency, charge=True)


def fit(parts: Split, latency: LatencyModel, grid: TreeGrid) -> tuple[Candidates, float]:
    """The best fixed tree and the cost model, without learned policies; and the exchange rate for training: tokens per millisecond of the
    best fixed tree."""
    trees = fixed_trees(grid.widths, grid.depths, grid.max_nodes, grid.sizes)
    fixed_tree, result = best_fixed_tree(parts.train_and_validation, latency, trees)
    calibration, _ = fit_cost_model(parts.train_and_validation, latency, grid.largest_trees, result.rate, grid.sizes)
    return Candidates(fixed_tree, calibration, {}), result.rate


def train(
    candidates: Candidates,
    parts: Split,
    latency: LatencyModel,
    grid: TreeGrid,
    rate: float,
    names: Sequence[str],
    seconds: float,
    seed: int,
    progress: Progress,
) -> Candidates:
    """``candidates`` with the policies ``names`` (of RECIPES) trained in about ``seconds``; unchanged, with a warning, if they are
    too few.

    ``rate``: the exchange rate, tokens per millisecond.
    """
    runs = num_runs(names)
    if not runs:
        return candidates
    if seconds < MIN_RUN_SECONDS * runs:
        _log.warning("there was no time to train %s — give more --minutes", ", ".join(names))
        return candidates
    features = any_trace(parts.train[0]).features.shape[1]
    setup = TrainingSetup(
        data=TrainingData(parts.train, parts.validation, latency, rate),
        grid=grid,
        fixed_tree=candidates.fixed_tree,
        largest_tree=candidates.calibration.tree,
        run_seconds=seconds / runs,
        policy_ms=measure_policy_ms(features, len(grid.actions(candidates.fixed_tree))),
        seed=seed,
        progress=lambda share: progress("training", round(1000 * share), 1000),
    )
    return replace(candidates, learned=train_policies(names, setup))


def simulate(candidates: Candidates, answers: Answers, latency: LatencyModel, grid: TreeGrid) -> dict[str, ReplayResult]:
    """Replays of every policy and of the oracle, by name."""
    results = {name: candidates.replay(name, answers, latency, grid.sizes) for name in candidates.policies(latency, grid.sizes)}
    trees = fixed_trees(grid.widths, grid.depths, grid.max_nodes, grid.sizes)
    first = oracle(answers, latency, trees, results["fixed"].rate)
    return {**results, "oracle": oracle(answers, latency, trees, first.rate)}


def confirming_seconds(rate: float, grid: TreeGrid, learned: Sequence[str]) -> float:
    """About the least that `confirm` takes, if every policy gives ``rate`` tokens per millisecond. ``learned``: those to be trained."""
    return MIN_PROMPTS * len((*CLOSED, *learned)) * grid.new_tokens / rate / 1000


def confirm(
    decoder: Decoder, prompts: Sequence[str], policies: Mapping[str, Policy], params: SamplingParams, deadline: float, progress: Progress
) -> dict[str, list[float]]:
    """Time the policies on ``prompts``. Returns tokens per second on each prompt, by name.

    All policies answer a prompt before the next one, in another order each time. ``params``: with a temperature, each prompt has a seed.
    """
    found: dict[str, list[float]] = {name: [] for name in policies}
    names = list(policies)
    for done, prompt in enumerate(prompts):
        if done >= MIN_PROMPTS and perf_counter() > deadline:
            break
        rates = {}
        for name in names[done % len(names) :] + names[: done % len(names)]:
            seeded = replace(params, seed=done) if params.temperature else params
            rates[name] = decoder.generate(as_chat(decoder, prompt), seeded, policy=policies[name]).stats.tokens_per_second
        if all(rates.values()):
            for name, rate in rates.items():
                found[name].append(rate)
        progress("confirming sampled requests" if params.temperature else "confirming by wall clock", done + 1, len(prompts))
    return found
