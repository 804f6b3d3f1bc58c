"""Compares the arms by load: tokens per busy second, and the 99th percentile of a token's time, on answers that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from policy import PLAIN, Calibration, CorrectedLatency, FixedPolicy, Guarded, LanesLatency, RowBudget, TablePolicy, TreeSpec

from ..replay.calibrate import fit_acceptance
from ..replay.simulation import Answers, any_trace
from .arms import LanePolicies, SharedBudget
from .arrivals import Times, at_once, day
from .bounds import Bound, Values, all_scores, clairvoyant
from .simulation import Arm, LoadResult, simulate_load
from .trees import FixedTrees, replay_trees

CAUSAL = ("none", "default", "fixed", "table", "cost-model")
BOUNDS = ("all scores known", "clairvoyant")
DAY = "day"
_BUSY = 0.7  # of what plain decoding bears, in the mean of a day
ROWS_OF_A_LANE = 8
Results = Mapping[str, Mapping[str, LoadResult]]
"""By load and arm."""


@dataclass(frozen=True)
class Setting:
    """``latency``: of the machine. ``trees``: the fixed ones to try. ``default``: the tree that everybody starts with. ``largest``: bounds
    of the cost model's trees. ``rows_of_a_lane``: that a pass may have, on average. ``takes_chunks``: as in `simulate_load`."""

    latency: LanesLatency
    trees: Sequence[TreeSpec]
    default: TreeSpec
    largest: TreeSpec
    rows_of_a_lane: int = ROWS_OF_A_LANE
    takes_chunks: bool = True


@dataclass(frozen=True)
class Fitted:
    """What was fitted to training answers: ``table`` by number of lanes, the best ``single`` tree for all loads, and acceptance, for the
    bound."""

    table: tuple[TreeSpec, ...]
    single: TreeSpec
    acceptance: Calibration


def fit_load(answers: Answers, setting: Setting, loads: Sequence[int]) -> Fitted:
    """Fit the fixed trees and the bound's probabilities."""
    trees: FixedTrees = replay_trees(answers, setting.trees)
    largest = setting.largest
    slope, level, bias = fit_acceptance(answers, largest.width)
    acceptance = Calibration(slope, level, bias, 0.0, 0.0, (largest.nodes, largest.depth, largest.width))
    return Fitted(trees.table(max(loads), setting.latency), trees.best_for_all(loads, setting.latency), acceptance)


def arms(setting: Setting, fitted: Fitted, lanes: int) -> Mapping[str, Callable[[], Arm]]:
    """Everything that is compared, by name. Fixed trees and the table have a guard; the cost model decides by itself who drafts."""
    latency, largest = setting.latency, setting.largest
    knows_scores, knows_all = all_scores(largest.width, fitted.acceptance), clairvoyant(largest.width)

    def bound(values: Values) -> Arm:
        return Bound(values, latency, largest.width, largest.depth, largest.nodes)

    return {
        "none": lambda: LanePolicies(lambda: FixedPolicy(PLAIN)),
        "default": lambda: LanePolicies(lambda: Guarded(FixedPolicy(setting.default), CorrectedLatency(latency))),
        "fixed": lambda: LanePolicies(lambda: Guarded(FixedPolicy(fitted.single), CorrectedLatency(latency))),
        "table": lambda: LanePolicies(lambda: Guarded(TablePolicy(fitted.table), CorrectedLatency(latency))),
        "cost-model": lambda: SharedBudget(RowBudget(CorrectedLatency(latency), setting.rows_of_a_lane * lanes), largest),
        "all scores known": lambda: bound(knows_scores),
        "clairvoyant": lambda: bound(knows_all),
    }


def compare(
    answers: Answers, setting: Setting, fitted: Fitted, loads: Sequence[int], progress: Callable[[int, int], None] = lambda *_: None
) -> dict[str, dict[str, LoadResult]]:
    """Results by load and arm. A load is a number of lanes that are always taken, and at the end a day's arrivals for the most lanes."""
    found: dict[str, dict[str, LoadResult]] = {}
    names = arms(setting, fitted, 1)
    steps = (len(loads) + 1) * len(names)

    def run(load: str, lanes: int, times: Times) -> None:
        found[load] = {}
        for name, make in arms(setting, fitted, lanes).items():
            found[load][name] = simulate_load(make(), answers, times, lanes, setting.latency, takes_chunks=setting.takes_chunks)
            progress(sum(map(len, found.values())), steps)

    for lanes in loads:
        run(str(lanes), lanes, at_once(len(answers)))
    tokens = sum(len(any_trace(traces)) for traces in answers) / len(answers)
    run(DAY, max(loads), day(len(answers), _BUSY * found[str(max(loads))]["none"].rate / tokens, 0))
    return found


def fastest(found: Results) -> str:
    """The causal arm with the highest geometric mean of its tokens per busy second over the loads."""
    return max(CAUSAL, key=lambda name: geometric_mean(results[name].rate for results in found.values()))


def described(found: Results, fitted: Fitted, default: TreeSpec) -> list[str]:
    """A table of the results, over plain decoding."""
    lines = [f"{'lanes':<24}" + "".join(f"{load:>17}" for load in found)]
    for name, cells in rows_of(found, fitted, default):
        texts = (f"{rate:>8.3f}x {p99:>5.1f} ms" for rate, p99 in cells)
        lines.append(f"{name:<24}" + "".join(f"{text:>17}" for text in texts))
    return [*lines, f"the table's trees, by lanes: {trees_by_load(found, fitted)}"]


def rows_of(found: Results, fitted: Fitted, default: TreeSpec) -> list[tuple[str, list[tuple[float, float]]]]:
    """For each arm its name and, for each load, its rate over plain decoding and the 99th percentile of a token's milliseconds."""
    labels = {
        "none": "plain decoding",
        "default": f"default tree {default}",
        "fixed": f"fixed tree {fitted.single}",
        "cost-model": "row budget",
    }
    return [
        (labels.get(name, name), [(results[name].rate / results["none"].rate, results[name].p99) for results in found.values()])
        for name in (*CAUSAL, *BOUNDS)
    ]


def trees_by_load(found: Results, fitted: Fitted) -> str:
    """The table's trees."""
    return ", ".join(f"{load}: {fitted.table[int(load) - 1]}" for load in found if load != DAY)
