"""What a tuning ends with: the manifest's entry, the networks to install, and words for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from policy import FixedPolicy, LatencyModel, TreeSpec
from runtime.backends.cpu.processor import processor_name
from runtime.manifest.schema import Manifest
from runtime.manifest.tuning import Tuning
from runtime.policies.registry import POLICIES

from .learning.trained import Trained
from .replay.grid import TreeGrid
from .replay.simulation import Answers, Replay, replay, static_trees
from .tune import Found

MARGIN = 1.0  # a policy must reach this many times the best fixed tree's tokens/s to be installed


@dataclass(frozen=True)
class Tuned:
    """``tuning`` lacks graphs and files: they come with installing ``learned``. ``simulated``: each policy and the oracle on recorded
    answers that nothing was fitted to; ``trees``: every fixed tree on those that were fitted to, best first."""

    tuning: Tuning
    learned: Mapping[str, Trained]
    simulated: Mapping[str, Replay]
    trees: tuple[tuple[TreeSpec, Replay], ...]


def decide(
    manifest: Manifest,
    threads: int,
    found: Found,
    latency: LatencyModel,
    ratios: Mapping[str, float],
    simulated: Mapping[str, Replay],
    fitted: Answers,
    grid: TreeGrid,
) -> Tuned:
    """The fastest by the clock is used; where no policy reaches the best fixed tree that is, or plain decoding where nothing helps."""
    best = max((name for name in ratios if name != "none"), key=lambda name: ratios[name])
    if ratios[best] < MARGIN * ratios["fixed"]:
        best = "fixed"
    if ratios[best] <= 1.0:
        best = "none"
    static = found.static
    learned = {name: trained.described(name) for name, trained in found.learned.items()}
    tuning = Tuning(
        engine=manifest.engine_id,
        machine=processor_name(),
        threads=threads,
        portable=False,
        policy=best,
        static=(static.nodes, static.depth, static.width),
        cost_model=found.calibration,
        latency=latency,
        learned=learned,
        ratios=ratios,
        graphs={},
        files={},
    )
    trees = [(tree, replay(FixedPolicy(tree), fitted, latency)) for tree in static_trees(grid.widths, grid.depths, grid.nodes, grid.sizes)]
    return Tuned(tuning, found.learned, simulated, tuple(sorted(trees, key=lambda result: -result[1].rate)))


def label(name: str, static: tuple[int, int, int]) -> str:
    """A policy's name for people."""
    return f"fixed tree {','.join(map(str, static))}" if name == "fixed" else POLICIES[name].label if name in POLICIES else name


def summary(tuned: Tuned) -> list[str]:
    """A table and the verdict."""
    tuning, plain = tuned.tuning, tuned.simulated["none"].rate
    lines = ["                          held-out prompts, over plain decoding", "                          by the clock   recorded answers"]
    for name, replayed in tuned.simulated.items():
        clock = f"{tuning.ratios[name]:>9.3f}x" if name in tuning.ratios else " " * 10
        lines.append(f"{label(name, tuning.static):<24}  {clock}  {replayed.rate / plain:>14.3f}x")
    return [*lines, verdict(tuning)]


def verdict(tuning: Tuning) -> str:
    """What is used from now on, and why."""
    name = label(tuning.policy, tuning.static)
    if tuning.policy == "none":
        return f"{name} is installed: drafting gains nothing here"
    if tuning.policy == "fixed":
        return f"the {name} is installed: no policy was faster than it"
    return f"{name} is installed: {tuning.ratios[tuning.policy] / tuning.ratios['fixed']:.3f} times as fast as the best fixed tree"
