"""How fast is every policy in simulated time, with several training seeds and beside an oracle? Does the simulation agree with the clock?

    python -m scripts.lab.policies.policy_seeds --engine-dir DIR --prompts TRAINING.jsonl --json OUT.json QUESTIONS.jsonl...

Needs the extra `tune`. Latencies come from the engine's tuning, if it has one, else they are measured. Policies are trained on the prompts
only, never on the questions. `resps-bench` measures one seed by the clock; this simulates all seeds without noise. Recorded answers are
kept in the cache directory.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from export.checkpoints.fetch import cache_directory
from export.tuning.learning.curriculum import num_runs
from export.tuning.prompts import read_prompts
from export.tuning.replay.grid import TreeGrid, grid_for
from export.tuning.replay.latency import measure_latency
from export.tuning.replay.record import as_chat, record
from export.tuning.replay.simulation import Answers, ReplayResult, fixed_trees, oracle, replay
from export.tuning.tune import Candidates, fit, split, train
from policy import PLAIN, FixedPolicy, LatencyModel, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.console import run_command
from runtime.policies.load import tuned_here
from scripts import options

VARIANTS = ("resps", "resps-average", "resps-max-entropy", "ltd-depth", "ltd-size", "ltd-both", "resps+ltd")
CHECKED = [TreeSpec(2, 1, 1), TreeSpec(4, 2, 2), TreeSpec(6, 3, 3), TreeSpec(10, 4, 3)]
NO_DEADLINE = float("inf")


@click.command()
@options.engine_dir
@click.option("--prompts", type=click.Path(path_type=Path, exists=True), help="Training prompts [default: the collection of resps-tune].")
@click.option("--training", default=80, show_default=True, help="Number of training prompts.")
@click.option("--questions", default=5, show_default=True, help="Number of questions of each set; only first turns are used.")
@click.option("--temperature", "temperatures", multiple=True, type=float, default=(0.0, 1.0), show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--turn-seconds", default=15.0, show_default=True, help="Training time of one network.")
@click.option("--policy", "names", multiple=True, type=click.Choice(VARIANTS), help="A learned policy, may be repeated [default: all].")
@click.option("--threads", default=2, show_default=True)
@click.option("--check", is_flag=True, help="Only compare predicted with timed tokens/s of fixed trees. Use a quiet machine.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write all figures.")
@click.argument("sets", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(
    engine_dir: Path,
    prompts: Path | None,
    training: int,
    questions: int,
    temperatures: tuple[float, ...],
    seeds: int,
    turn_seconds: float,
    names: tuple[str, ...],
    threads: int,
    check: bool,
    out: Path | None,
    sets: tuple[Path, ...],
) -> None:
    """Print a table in Markdown for each temperature."""
    if check and 0.0 not in temperatures:
        raise click.UsageError("--check times greedy answers — leave --temperature out, or add 0")
    names = names or VARIANTS
    with Decoder(engine_dir, policy="fixed", draft="eagle", threads=threads) as decoder:
        grid, cache = grid_for(decoder.manifest), cache_directory() / "tuning" / decoder.manifest.engine_id
        tuning = tuned_here(decoder.manifest, threads)
        latency = tuning.latency if tuning and not check else measure_latency(decoder, grid.widths, grid.depths, grid.max_nodes)
        prompts_of = {file.stem: read_prompts(file)[:questions] for file in sets}
        answers_of = {
            temperature: {
                name: record(
                    decoder,
                    prompts_of[name],
                    grid,
                    cache,
                    NO_DEADLINE,
                    _progress,
                    SamplingParams(temperature=temperature, seed=1 if temperature else None),
                    1,
                )
                for name in prompts_of
            }
            for temperature in temperatures
        }
        if check:
            click.echo("\n".join(_check(decoder, next(iter(prompts_of.values())), answers_of[0.0], latency, grid)))
            return
        parts = split(record(decoder, read_prompts(prompts)[:training], grid, cache, NO_DEADLINE, _progress))
        default_tree = decoder.default_tree
        untrained, rate = fit(parts, latency, grid)
        trained = []
        for seed in range(seeds):
            seconds = turn_seconds * num_runs(names)
            trained.append(train(untrained, parts, latency, grid, rate, names, seconds, seed, _progress))
        figures = {
            str(temperature): {name: _rates(answers, untrained, trained, latency, grid, default_tree) for name, answers in by_set.items()}
            for temperature, by_set in answers_of.items()
        }
    for temperature, by_set in figures.items():
        click.echo("\n".join(_table(temperature, by_set, untrained.fixed_tree, default_tree)))
    if out:
        out.write_text(json.dumps({"figures": figures, "static": str(untrained.fixed_tree)}, indent=1))


def _rates(
    answers: Answers,
    untrained: Candidates,
    trained: Sequence[Candidates],
    latency: LatencyModel,
    grid: TreeGrid,
    default_tree: TreeSpec,
) -> dict[str, dict[str, list[float]]]:
    """For each policy: rates over plain decoding and tokens per cycle, one value for every seed."""
    plain = replay(FixedPolicy(PLAIN), answers, latency).rate
    results: dict[str, dict[str, list[float]]] = {}

    def add(name: str, result: ReplayResult) -> None:
        entry = results.setdefault(name, {"rate": [], "tokens": []})
        entry["rate"].append(result.rate / plain)
        entry["tokens"].append(result.tokens_per_cycle)

    add("default", replay(FixedPolicy(default_tree), answers, latency))
    for name in ("fixed", "cost-model"):
        add(name, untrained.replay(name, answers, latency, grid.sizes))
    for candidates in trained:
        for name in candidates.learned:
            add(name, candidates.replay(name, answers, latency, grid.sizes))
    trees = fixed_trees(grid.widths, grid.depths, grid.max_nodes, grid.sizes)
    best = oracle(answers, latency, trees, plain)
    for _ in range(3):
        best = oracle(answers, latency, trees, best.rate)
    results["oracle"] = {"rate": [best.rate / plain], "tokens": [best.tokens_per_cycle]}
    return results


def _check(decoder: Decoder, prompts: Sequence[str], by_set: Mapping[str, Answers], latency: LatencyModel, grid: TreeGrid) -> list[str]:
    """A table of tokens/s of fixed trees on the first set: predicted and timed. The trees take turns; of three runs of each answer the
    fastest counts."""
    answers = next(iter(by_set.values()))
    tokens: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for prompt in prompts:
        best: dict[str, Any] = {}
        for _ in range(3):
            for tree in (PLAIN, *CHECKED):
                params = SamplingParams(max_new_tokens=grid.new_tokens)
                stats = decoder.generate(as_chat(decoder, prompt), params, policy=FixedPolicy(tree)).stats
                if str(tree) not in best or stats.decode_seconds < best[str(tree)].decode_seconds:
                    best[str(tree)] = stats
        for name, stats in best.items():
            tokens[name] = tokens.get(name, 0) + stats.new_tokens - 1
            seconds[name] = seconds.get(name, 0.0) + stats.decode_seconds
    lines = ["| tree | predicted tokens/s | by the clock | |", "| --- | --- | --- | --- |"]
    for tree in (PLAIN, *CHECKED):
        predicted, timed = 1000 * replay(FixedPolicy(tree), answers, latency).rate, tokens[str(tree)] / seconds[str(tree)]
        lines.append(f"| {tree} | {predicted:.1f} | {timed:.1f} | {predicted / timed - 1:+.1%} |")
    return lines


def _table(temperature: str, by_set: Mapping[str, Mapping[str, Any]], fixed_tree: TreeSpec, default_tree: TreeSpec) -> list[str]:
    names = list(next(iter(by_set.values())))
    lines = [f"\nTemperature {temperature}; default tree {default_tree}, best fixed tree {fixed_tree}\n"]
    lines += [f"| | {' | '.join(by_set)} | mean | tokens per cycle |", "| --- |" + " --- |" * (len(by_set) + 2)]
    for name in names:
        cells = [statistics.mean(results[name]["rate"]) for results in by_set.values()]
        seeds = [statistics.mean(rates) for rates in zip(*(results[name]["rate"] for results in by_set.values()), strict=True)]
        tokens = statistics.mean(statistics.mean(results[name]["tokens"]) for results in by_set.values())
        spread = f" ({min(seeds):.3f} - {max(seeds):.3f})" if len(seeds) > 1 else ""
        lines.append(f"| {name} | {' | '.join(f'{cell:.3f}' for cell in cells)} | {statistics.mean(cells):.3f}{spread} | {tokens:.2f} |")
    return lines


def _progress(step: str, done: int, total: int) -> None:
    if done in (1, total):
        click.echo(f"{step}: {done}/{total}", err=True)


if __name__ == "__main__":
    sys.exit(run_command(main, "policy_seeds"))
