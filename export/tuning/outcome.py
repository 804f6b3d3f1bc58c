"""The result of a tuning: the choice of the fastest policy, the manifest's entry, and the summary that resps-tune prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from policy import FixedPolicy, LatencyModel, TreeSpec
from policy.resps import Action
from runtime.backends.cpu.processor import processor_name
from runtime.manifest.schema import Manifest
from runtime.manifest.tuning import Tuning
from runtime.policies.registry import POLICIES

from .learning.trained import TrainedPolicy
from .load.trees import FixedTrees, mean_length
from .replay.grid import TreeGrid
from .replay.simulation import Answers, ReplayResult, fixed_trees, replay
from .tune import Candidates

MIN_SPEEDUP = 1.0  # over the best fixed tree; a slower policy is not installed


@dataclass(frozen=True)
class TuningResult:
    """What was measured and trained. ``tuning``: the manifest's entry, still without graphs and files; `install` adds those of ``learned``.

    simulated: replays of every policy and of the oracle, on the test answers. trees: replays of every fixed tree on the training and
    validation answers, best first.
    """

    tuning: Tuning
    learned: Mapping[str, TrainedPolicy]
    simulated: Mapping[str, ReplayResult]
    trees: tuple[tuple[TreeSpec, ReplayResult], ...]


def tuning_result(
    manifest: Manifest,
    threads: int,
    candidates: Candidates,
    latency: LatencyModel,
    ratios: Mapping[str, float],
    simulated: Mapping[str, ReplayResult],
    answers: Answers,
    grid: TreeGrid,
) -> TuningResult:
    """Choose the policy with the highest measured tokens/s (``ratios``, over plain decoding).

    If no policy is as fast as the best fixed tree, that tree is chosen, and plain decoding if nothing is faster than that. ``answers``: to
    replay every fixed tree on, for the report.
    """
    best = max((name for name in ratios if name != "none"), key=lambda name: ratios[name])
    if ratios[best] < MIN_SPEEDUP * ratios["fixed"]:
        best = "fixed"
    if ratios[best] <= 1.0:
        best = "none"
    fixed_tree = candidates.fixed_tree
    trees = fixed_trees(grid.widths, grid.depths, grid.max_nodes, grid.sizes)
    replays = [(tree, replay(FixedPolicy(tree), answers, latency)) for tree in trees]
    learned = {name: trained.manifest_entry(name) for name, trained in candidates.learned.items()}
    tuning = Tuning(
        engine=manifest.engine_id,
        machine=processor_name(),
        threads=threads,
        portable=False,
        policy=best,
        static=(fixed_tree.nodes, fixed_tree.depth, fixed_tree.width),
        cost_model=candidates.calibration,
        latency=latency,
        learned=learned,
        ratios=ratios,
        graphs={},
        files={},
        rotated=manifest.rotated,
        table=_table(replays, answers, latency),
    )
    return TuningResult(tuning, candidates.learned, simulated, tuple(sorted(replays, key=lambda result: -result[1].rate)))


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
    """The lines that resps-tune prints: a table of all policies, and the verdict."""
    tuning, plain = result.tuning, result.simulated["none"].rate
    lines = ["                          held-out prompts, over plain decoding", "                          by the clock   recorded answers"]
    for name, replayed in result.simulated.items():
        clock = f"{tuning.ratios[name]:>9.3f}x" if name in tuning.ratios else " " * 10
        lines.append(f"{label(name, tuning.static):<24}  {clock}  {replayed.rate / plain:>14.3f}x")
    return [*lines, verdict(tuning)]


def verdict(tuning: Tuning) -> str:
    """One line that says which policy is installed, and why."""
    name = label(tuning.policy, tuning.static)
    if tuning.policy == "none":
        return f"{name} is installed: drafting gains nothing here"
    if tuning.policy == "fixed":
        return f"the {name} is installed: no policy was faster than it"
    return f"{name} is installed: {tuning.ratios[tuning.policy] / tuning.ratios['fixed']:.3f} times as fast as the best fixed tree"
