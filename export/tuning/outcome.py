"""The result of a tuning: the choice of the fastest policy, the manifest's entry, and the summary that resps-tune prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from policy import FixedPolicy, LatencyModel, TreeSpec
from policy.resps import Action
from runtime.backends.cpu.processor import processor_name
from runtime.manifest.schema import Manifest
from runtime.manifest.tuning import SampledTuning, Tuning
from runtime.policies.registry import POLICIES

from .evidence import Rates, choose, joined, ratio_of
from .learning.trained import TrainedPolicy
from .load.trees import FixedTrees, mean_length
from .replay.grid import TreeGrid
from .replay.simulation import Answers, ReplayResult, fixed_trees, replay
from .tune import CLOSED, Candidates, Split


@dataclass(frozen=True)
class Findings:
    """What competed at one temperature and how it did. ``clock``: tokens per second on each held-out prompt. ``simulated``: replays of
    every policy and of the oracle, on the test answers."""

    candidates: Candidates
    clock: Rates
    simulated: Mapping[str, ReplayResult]

    @property
    def recorded(self) -> Rates:
        """Of each policy on each test answer."""
        return {name: self.simulated[name].answer_rates for name in self.clock}

    @property
    def policy(self) -> str:
        """The one to install."""
        return choose(self.clock, self.recorded, CLOSED)

    @property
    def ratios(self) -> dict[str, float]:
        """By the clock, over plain decoding."""
        return {name: ratio_of(self.clock, name, "none").value for name in self.clock}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Of all policies over the fixed tree, where there are enough prompts for one."""
        found = {name: joined(self.clock, self.recorded, name, "fixed").interval for name in self.clock if name != "fixed"}
        return {name: interval for name, interval in found.items() if isfinite(interval[1])}

    @property
    def sampled(self) -> SampledTuning:
        """The manifest's entry if the requests were sampled ones."""
        tree, calibration = self.candidates.fixed_tree, self.candidates.calibration
        return SampledTuning(self.policy, (tree.nodes, tree.depth, tree.width), calibration, self.ratios, self.intervals)


@dataclass(frozen=True)
class TuningResult:
    """What was measured and trained. ``tuning``: the manifest's entry, still without graphs and files; `install` adds those of ``learned``.

    simulated: as in Findings. trees: replays of every fixed tree on the training and validation answers, best first. answers: what was
    recorded greedily.
    """

    tuning: Tuning
    learned: Mapping[str, TrainedPolicy]
    simulated: Mapping[str, ReplayResult]
    trees: tuple[tuple[TreeSpec, ReplayResult], ...]
    answers: Split


def tuning_result(
    manifest: Manifest, threads: int, latency: LatencyModel, greedy: Findings, sampled: Findings, answers: Split, grid: TreeGrid
) -> TuningResult:
    """Choose the policies to install. ``answers``: greedy ones."""
    candidates = greedy.candidates
    fixed_tree = candidates.fixed_tree
    trees = fixed_trees(grid.widths, grid.depths, grid.max_nodes, grid.sizes)
    fitted_to = answers.train_and_validation
    replays = [(tree, replay(FixedPolicy(tree), fitted_to, latency)) for tree in trees]
    tuning = Tuning(
        engine=manifest.engine_id,
        machine=processor_name(),
        threads=threads,
        portable=False,
        policy=greedy.policy,
        static=(fixed_tree.nodes, fixed_tree.depth, fixed_tree.width),
        cost_model=candidates.calibration,
        latency=latency,
        learned={name: trained.manifest_entry(name) for name, trained in candidates.learned.items()},
        ratios=greedy.ratios,
        graphs={},
        files={},
        rotated=manifest.rotated,
        table=_table(replays, fitted_to, latency),
        intervals=greedy.intervals,
        sampled=sampled.sampled,
    )
    return TuningResult(tuning, candidates.learned, greedy.simulated, tuple(sorted(replays, key=lambda each: -each[1].rate)), answers)


def _table(replays: Sequence[tuple[TreeSpec, ReplayResult]], answers: Answers, latency: LatencyModel) -> tuple[Action, ...]:
    """The best fixed tree for each number of lanes, if they were measured."""
    if latency.lanes is None:
        return ()
    trees = FixedTrees({tree: result.tokens_per_cycle for tree, result in replays}, mean_length(answers))
    return tuple((tree.nodes, tree.depth, tree.width) for tree in trees.table(latency.lanes.lanes[-1], latency.lanes))


def label(name: str, fixed_tree: tuple[int, int, int]) -> str:
    """A policy's name in tables; for the fixed tree with its (nodes, depth, width)."""
    return f"fixed tree {','.join(map(str, fixed_tree))}" if name == "fixed" else POLICIES[name].label if name in POLICIES else name


def summary(result: TuningResult) -> list[str]:
    """The lines that resps-tune prints: a table of all policies, and the verdicts."""
    tuning, plain = result.tuning, result.simulated["none"].rate
    lines = [
        "                          held-out prompts, over plain decoding             over the best fixed tree",
        "                          by the clock   recorded answers   sampled         95 % interval",
    ]
    assert tuning.sampled is not None
    for name, replayed in result.simulated.items():
        clock, sampled = (f"{ratios[name]:>9.3f}x" if name in ratios else " " * 10 for ratios in (tuning.ratios, tuning.sampled.ratios))
        line = f"{label(name, tuning.static):<24}  {clock}  {replayed.rate / plain:>14.3f}x  {sampled}"
        lines.append(line + ("         {:.3f} to {:.3f}".format(*tuning.intervals[name]) if name in tuning.intervals else ""))
    return [*lines, verdict(tuning), f"for sampled requests: {verdict(tuning.for_temperature(1.0))}"]


def verdict(tuning: Tuning) -> str:
    """One line that says which policy is installed, and why."""
    name = label(tuning.policy, tuning.static)
    if tuning.policy == "none" or (tuning.policy == "fixed" and tuning.static[0] == 1):
        return "plain decoding is installed: drafting gains nothing here"
    if tuning.policy == "fixed":
        return f"the {name} is installed: no policy was faster than it"
    text = f"{name} is installed: {tuning.ratios[tuning.policy] / tuning.ratios['fixed']:.3f} times as fast as the best fixed tree"
    interval = tuning.intervals.get(tuning.policy)
    return text + (" by the clock, with recorded answers {:.3f} to {:.3f}".format(*interval) if interval else "")
