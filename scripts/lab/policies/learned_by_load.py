"""Does a learned controller of several lanes beat the row budget in simulated time? With intervals, and with what the information can tell.

    python -m scripts.lab.policies.learned_by_load --engine-dir DIR --training PROMPTS.jsonl QUESTIONS.jsonl...

Networks (scripts/lab/policies/lane_learning.py) are fitted to answers to the training prompts, never to the questions. Each interval
comes from resampled questions, each time with another training seed, and the same questions for both policies. Rounds of several lanes
are measured first, so use a quiet machine. Recorded answers are kept in the cache directory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import click
import numpy as np

from export.checkpoints.fetch import cache_directory
from export.tuning.load.arms import LanePolicies, SharedBudget
from export.tuning.load.arrivals import at_once
from export.tuning.load.bounds import Bound, all_scores, clairvoyant
from export.tuning.load.compare import ROWS_OF_A_LANE, Fitted, Setting, fit_load
from export.tuning.load.simulation import Arm, simulate_load
from export.tuning.load.trees import mean_length, replay_trees
from export.tuning.prompts import read_prompts
from export.tuning.replay.grid import grid_for
from export.tuning.replay.lanes_latency import measure_lanes
from export.tuning.replay.record import record
from export.tuning.replay.simulation import Answers, fixed_trees
from policy import PLAIN, CorrectedLatency, FixedPolicy, Guarded, LanesLatency, RowBudget, TablePolicy, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.console import run_command
from scripts import options

from .lane_learning import GROUPS, LearnedBudget, LearningBudget, Net, Projection, collected, fitted, resps_arm, resps_examples

MEASURING, NO_DEADLINE, CLOSED = 60.0, float("inf"), "cost-model"
ABLATION = (("record",), ("record", "load"), ("record", "position"), ("record", "features"), ("features",), tuple(GROUPS))
CAPS = (2, 3, 5)  # rows of a lane on average that a pass may have, instead of ROWS_OF_A_LANE
HOLDS = (10, 30)  # rounds


@dataclass(frozen=True)
class Trained:
    """The networks of one seed."""

    who: Net
    deep: Net
    resps: Net


@dataclass(frozen=True)
class Ground:
    """What all arms share."""

    latency: LanesLatency
    bounds: TreeSpec
    table: Fitted
    actions: Sequence[TreeSpec]
    project: Projection

    def budget(self, lanes: int, rows: int = ROWS_OF_A_LANE, deep: Net | None = None) -> LearnedBudget:
        made = LearnedBudget(CorrectedLatency(self.latency), rows * lanes)
        made.deep = deep
        return made


def arms(ground: Ground, nets: Trained, lanes: int) -> Mapping[str, Callable[[], Arm]]:
    """Everything that is compared on the same resampled questions."""
    latency, bounds, project = ground.latency, ground.bounds, ground.project
    found: dict[str, Callable[[], Arm]] = {
        CLOSED: lambda: SharedBudget(RowBudget(CorrectedLatency(latency), ROWS_OF_A_LANE * lanes), bounds),
        "none": lambda: LanePolicies(lambda: FixedPolicy(PLAIN)),
        "table": lambda: LanePolicies(lambda: Guarded(TablePolicy(ground.table.table), CorrectedLatency(latency))),
        "learned: who drafts": lambda: LearningBudget(ground.budget(lanes), bounds, project, nets.who),
        "learned: how deep": lambda: SharedBudget(ground.budget(lanes, deep=nets.deep), bounds),
        "learned: both": lambda: LearningBudget(ground.budget(lanes, deep=nets.deep), bounds, project, nets.who),
    }
    found |= {f"Re-SpS with load, held {hold}": lambda hold=hold: resps_arm(nets.resps, ground.actions, project, hold) for hold in HOLDS}  # type: ignore[misc]
    return found | {f"row cap {cap} a lane": lambda cap=cap: SharedBudget(ground.budget(lanes, cap), bounds) for cap in CAPS}  # type: ignore[misc]


def trained(train: Answers, ground: Ground, loads: Sequence[int], seeds: int) -> list[Trained]:
    """The networks of every seed."""
    examples = collected(train, ground.latency, ground.bounds, loads, ROWS_OF_A_LANE, ground.project)
    who, deep = ((np.stack([x for x, _ in each]), np.array([y for _, y in each], np.float32)) for each in (examples.who, examples.deep))
    trees = replay_trees(train, [*ground.actions])
    rates = {lanes: trees.rate(trees.best(lanes, ground.latency), lanes, ground.latency) for lanes in loads}
    states, worth = resps_examples(train, ground.latency, ground.actions, rates, mean_length(train), ground.project)
    return [Trained(fitted(*who, 16, seed), fitted(*deep, 16, seed), fitted(states, worth, 64, seed, 20)) for seed in range(seeds)]


def ablation(train: Answers, test: Answers, ground: Ground, loads: Sequence[int], seeds: int) -> list[str]:
    """How much of the variance of a lane's next accepted tokens each kind of information explains, on the questions."""
    (x, y), (given, truth) = (
        (np.stack([state for state, _ in each.who]), np.array([label for _, label in each.who], np.float32))
        for each in (collected(answers, ground.latency, ground.bounds, loads, ROWS_OF_A_LANE, ground.project) for answers in (train, test))
    )

    def explained(predicted: np.ndarray) -> float:
        return 1 - float(np.square(truth - predicted).mean() / truth.var())

    lines = [
        f"explained variance of accepted tokens, {len(x)} and {len(truth)} rounds of lanes",
        f"the row budget's record: {explained(given[:, 1]):.3f}",
    ]
    for groups in ABLATION:
        columns = np.concatenate([np.arange(GROUPS[group].start, GROUPS[group].stop) for group in groups])
        for kind, hidden in (("line", 0), ("network", 16)):
            shares = [explained(fitted(x[:, columns], y, hidden, seed)(given[:, columns])) for seed in range(seeds)]
            lines.append(f"{' + '.join(groups)}, {kind}: {np.mean(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})")
    return lines


def compared(test: Answers, ground: Ground, nets: Sequence[Trained], lanes: int, resamples: int) -> list[str]:
    """Tokens per busy second over the row budget's, with 95 % intervals, and the bounds once."""
    rates: dict[str, list[float]] = {}
    for sample in range(resamples):
        random = np.random.default_rng(sample)
        given = [test[index] for index in random.integers(0, len(test), len(test))]
        for name, make in arms(ground, nets[sample % len(nets)], lanes).items():
            rates.setdefault(name, []).append(simulate_load(make(), given, at_once(len(given)), lanes, ground.latency).rate)
    lines = [f"{lanes} lanes, over the row budget"]
    for name, values in rates.items():
        ratios = np.array(values) / np.array(rates[CLOSED])
        low, high = np.percentile(ratios, [2.5, 97.5])
        lines.append(f"{name}: {ratios.mean():.3f} ({low:.3f} to {high:.3f})")
    width, acceptance = ground.bounds.width, ground.table.acceptance
    closed = simulate_load(SharedBudget(ground.budget(lanes), ground.bounds), test, at_once(len(test)), lanes, ground.latency).rate
    for name, values_of in (("all draft scores known", all_scores(width, acceptance)), ("clairvoyant", clairvoyant(width))):
        bound = Bound(values_of, ground.latency, width, ground.bounds.depth, ground.bounds.nodes)
        lines.append(f"{name}: {simulate_load(bound, test, at_once(len(test)), lanes, ground.latency).rate / closed:.3f}")
    return lines


@click.command()
@options.engine_dir
@click.option("--training", required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Prompts to learn from.")
@click.option("--answers", default=64, show_default=True, help="Training prompts to use.")
@click.option("--questions", default=8, show_default=True, help="Number of questions of each set; only first turns are used.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--resamples", default=20, show_default=True)
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--lanes", "loads", multiple=True, type=click.IntRange(min=1), default=(1, 4, 8, 16), show_default=True)
@click.argument("sets", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(
    engine_dir: Path,
    training: Path,
    answers: int,
    questions: int,
    seeds: int,
    resamples: int,
    temperature: float,
    threads: int,
    loads: tuple[int, ...],
    sets: tuple[Path, ...],
) -> None:
    """Print what each kind of information explains, and what learned policies bring over the row budget."""
    sampling = SamplingParams(temperature=temperature, seed=1 if temperature else None)
    prompts = [prompt for file in sets for prompt in read_prompts(file)[:questions]]
    with Decoder(engine_dir, lanes=max(2, *loads), policy="none", threads=threads) as decoder:
        grid = grid_for(decoder.manifest)
        latency = measure_lanes(decoder, grid.widths, grid.depths, perf_counter() + MEASURING)
        cache = cache_directory() / "tuning" / decoder.manifest.engine_id
        train, test = (
            record(decoder, each, grid, cache, NO_DEADLINE, lambda *_: None, sampling, 1)
            for each in (read_prompts(training)[:answers], prompts)
        )
        trees, default = fixed_trees(grid.widths, grid.depths, grid.max_nodes, grid.sizes), decoder.default_tree
    bounds = TreeSpec(*grid.largest_trees[-1])
    table = fit_load(train, Setting(latency, trees, default, bounds), loads)
    actions = [TreeSpec(*action) for action in grid.actions(table.single)]
    ground = Ground(latency, bounds, table, actions, Projection.of(train))
    nets = trained(train, ground, loads, seeds)
    for line in ablation(train, test, ground, loads, min(2, seeds)):
        click.echo(line)
    for lanes in loads:
        click.echo("\n".join(compared(test, ground, nets, lanes, resamples)))


if __name__ == "__main__":
    sys.exit(run_command(main, "learned_by_load"))
