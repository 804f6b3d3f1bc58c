"""What the programs here begin with: what rounds cost now, recorded answers, and the policies without networks fitted to both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from export.checkpoints.fetch import cache_directory
from export.tuning.load.compare import Fitted, Setting, fit_load
from export.tuning.replay.grid import TreeGrid
from export.tuning.replay.lanes_latency import measure_lanes
from export.tuning.replay.latency import measure_latency
from export.tuning.replay.record import record
from export.tuning.replay.simulation import Answers, fixed_trees
from export.tuning.replay.traces import Trace
from export.tuning.tune import Candidates, Split, fit
from policy import LatencyModel, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.backends.cpu.processor import processor_name
from runtime.engine import LoadedEngine, choose_engine, load_engine
from runtime.manifest.tuning import SampledTuning, Tuning

MEASURING = 60.0  # seconds, for several lanes
FOREVER = float("inf")


@dataclass(frozen=True)
class Closed:
    """``candidates``: for one lane. ``load``: for several, in ``setting``; its single tree is that of ``candidates``, as in service."""

    candidates: Candidates
    load: Fitted
    setting: Setting


def open_untuned(engine_dir: Path, threads: int) -> LoadedEngine:
    """The engine without lookup, which the replay leaves out, and without its tuning."""
    choice = choose_engine(engine_dir, draft="eagle", backend=None, device=None, threads=threads, verify=None, tuned=False)
    return load_engine(choice)


def measured(engine: LoadedEngine, lanes: int, grid: TreeGrid) -> LatencyModel:
    """What rounds take on this machine now, with one lane and with up to ``lanes``."""
    with Decoder(engine.fork()) as decoder:
        latency = measure_latency(decoder, grid.widths, grid.depths, grid.max_nodes)
    with Decoder(engine.fork(), lanes=max(2, lanes)) as decoder:
        return replace(latency, lanes=measure_lanes(decoder, grid.widths, grid.depths, perf_counter() + MEASURING))


def recorded(
    decoder: Decoder, prompts: Sequence[str], grid: TreeGrid, sampling: SamplingParams, deadline: float, folder: str = ""
) -> list[tuple[str, Mapping[int, Trace]]]:
    """The prompts that have an answer, each with its traces; at least one batch of as many as ``decoder`` has lanes, and what more there is
    time for before ``deadline``. ``folder``: in the cache, for answers that must come from as many lanes."""
    cache, found = cache_directory() / "tuning" / decoder.manifest.engine_id / folder, list[tuple[str, Mapping[int, Trace]]]()
    prompts = list(dict.fromkeys(prompts))
    for start in range(0, len(prompts), decoder.lanes):
        if found and perf_counter() > deadline:
            break
        batch = prompts[start : start + decoder.lanes]
        record(decoder, batch, grid, cache, FOREVER, _silent, sampling, 0)
        found += [(each, answer) for each in batch for answer in record(decoder, [each], grid, cache, FOREVER, _silent, sampling, 0)]
    return found


def fit_closed(answers: Answers, latency: LatencyModel, grid: TreeGrid, engine: LoadedEngine, lanes: int) -> Closed:
    """The best fixed tree, the table for up to ``lanes`` lanes, and the cost model, whose tree bounds the row budget's."""
    candidates, _ = fit(Split(answers, [], []), latency, grid)
    _, depth, width = candidates.calibration.tree
    bounds = TreeSpec(min(engine.choice.manifest.limits.tree_nodes, TreeSpec(1, depth, width).capacity), depth, width)
    trees = fixed_trees(grid.widths, grid.depths, grid.max_nodes, grid.sizes)
    setting = Setting(latency.for_lanes(), trees, engine.choice.default_tree, bounds)
    return Closed(candidates, replace(fit_load(answers, setting, (lanes,)), single=candidates.fixed_tree), setting)


def tuned(engine: LoadedEngine, closed: Closed, latency: LatencyModel) -> LoadedEngine:
    """The engine with what was fitted, for requests of any temperature."""
    choice, fit = engine.choice, closed.candidates
    static = (fit.fixed_tree.nodes, fit.fixed_tree.depth, fit.fixed_tree.width)
    tuning = Tuning(
        engine=choice.manifest.engine_id,
        machine=processor_name(),
        threads=choice.threads,
        portable=False,
        policy="cost-model",
        static=static,
        cost_model=fit.calibration,
        latency=latency,
        learned={},
        ratios={},
        graphs={},
        files={},
        table=tuple((tree.nodes, tree.depth, tree.width) for tree in closed.load.table),
        sampled=SampledTuning("cost-model", static, fit.calibration, {}, {}),
    )
    return replace(engine, choice=replace(choice, tuning=tuning))


def _silent(step: str, done: int, steps: int) -> None:
    """Shows nothing."""
