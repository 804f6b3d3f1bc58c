"""resps-tune, step by step, after recording and measuring: fit, train, confirm by wall clock. Every step is a plain function."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

from policy import PLAIN, Calibration, CostModel, FixedPolicy, LatencyModel, Policy, TreeSpec, watch
from runtime import Decoder, SamplingParams

from .learning.curriculum import Course, policy_cost, train, turns_of
from .learning.ppo import Lesson
from .learning.trained import Trained
from .replay.calibrate import fit_cost_model
from .replay.grid import TreeGrid
from .replay.record import LEAST_PROMPTS, Progress, asked
from .replay.simulation import Answers, Replay, best_static, oracle, replay, static_trees

LEAST_TURN = 5.0  # seconds: a training shorter than that learns nothing


@dataclass(frozen=True)
class Split:
    """Recorded answers: to fit and train with, to choose weights by, to test."""

    train: Answers
    validation: Answers
    test: Answers

    @property
    def fitted(self) -> Answers:
        """What may be looked at."""
        return [*self.train, *self.validation]


def split(answers: Answers) -> Split:
    """A third to test with, a quarter of the others to validate."""
    seen = [each for index, each in enumerate(answers) if index % 3]
    return Split([each for index, each in enumerate(seen) if index % 4], seen[::4], answers[::3])


@dataclass(frozen=True)
class Found:
    """The best fixed tree, the closed form and the learned policies, by name."""

    static: TreeSpec
    calibration: Calibration
    learned: Mapping[str, Trained]

    def policies(self, latency: LatencyModel, sizes: tuple[int, ...] | None) -> dict[str, Policy]:
        """Each as it runs in service, plain decoding and the fixed tree first."""
        tuned: dict[str, Policy] = {"cost-model": CostModel(self.calibration, latency, sizes)}
        tuned |= {name: trained.policy() for name, trained in self.learned.items()}
        guarded = {name: watch(policy, self.static, latency) for name, policy in tuned.items()}
        return {"none": FixedPolicy(PLAIN), "fixed": FixedPolicy(self.static), **guarded}

    def replay(self, name: str, answers: Answers, latency: LatencyModel, sizes: tuple[int, ...] | None) -> Replay:
        """One of ``policies`` in simulated time."""
        return replay(self.policies(latency, sizes)[name], answers, latency)


def fit(parts: Split, latency: LatencyModel, grid: TreeGrid) -> tuple[Found, float]:
    """The best fixed tree and the closed form; and the former's tokens per millisecond, the exchange rate for training."""
    static, done = best_static(parts.fitted, latency, static_trees(grid.widths, grid.depths, grid.nodes, grid.sizes))
    calibration, _ = fit_cost_model(parts.fitted, latency, grid.largest, done.rate, grid.sizes)
    return Found(static, calibration, {}), done.rate


def learn(
    found: Found,
    parts: Split,
    latency: LatencyModel,
    grid: TreeGrid,
    rate: float,
    names: Sequence[str],
    seconds: float,
    seed: int,
    progress: Progress,
) -> Found:
    """``found`` with the policies ``names`` trained, in about so many seconds; without any where that is too short."""
    turns = turns_of(names)
    if not turns or seconds / turns < LEAST_TURN:
        return found
    some = next(iter(parts.train[0].values()))
    course = Course(
        lesson=Lesson(parts.train, parts.validation, latency, rate),
        grid=grid,
        static=found.static,
        tree=found.calibration.tree,
        turn_seconds=seconds / turns,
        policy_ms=policy_cost(some.features.shape[1], len(grid.actions(found.static))),
        seed=seed,
        progress=lambda share: progress("training", round(1000 * share), 1000),
    )
    return Found(found.static, found.calibration, train(names, course))


def simulate(found: Found, answers: Answers, latency: LatencyModel, grid: TreeGrid) -> dict[str, Replay]:
    """What each policy and the oracle do with answers that nothing was fitted to."""
    results = {name: found.replay(name, answers, latency, grid.sizes) for name in found.policies(latency, grid.sizes)}
    trees = static_trees(grid.widths, grid.depths, grid.nodes, grid.sizes)
    best = oracle(answers, latency, trees, results["fixed"].rate)
    return {**results, "oracle": oracle(answers, latency, trees, best.rate)}


def confirm(
    decoder: Decoder, prompts: Sequence[str], policies: Mapping[str, Policy], new_tokens: int, deadline: float, progress: Progress
) -> dict[str, float]:
    """Tokens per second over plain decoding ("none" is among the policies). Geometric means over prompts: the ratio of two is then that of
    the policies prompt by prompt, where medians of a dozen picked winners by luck. All take turns prompt by prompt, in another order each
    time."""
    ratios: dict[str, list[float]] = {name: [] for name in policies}
    names = list(policies)
    for done, prompt in enumerate(prompts):
        if done >= LEAST_PROMPTS and perf_counter() > deadline:
            break
        rates = {}
        for name in names[done % len(names) :] + names[: done % len(names)]:
            rates[name] = decoder.generate(
                asked(decoder, prompt), SamplingParams(max_new_tokens=new_tokens), policy=policies[name]
            ).stats.tokens_per_second
        if rates["none"]:
            for name, rate in rates.items():
                ratios[name].append(rate / rates["none"])
        progress("confirming by wall clock", done + 1, len(prompts))
    return {name: statistics.geometric_mean(each) for name, each in ratios.items()}
