"""How fast is every policy in simulated time, with several training seeds and beside an oracle? Does the simulation agree with the clock?

    python -m scripts.lab.policy_seeds --engine-dir DIR --prompts TRAINING.jsonl --json OUT.json QUESTIONS.jsonl...

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
from export.tuning.learning.curriculum import turns_of
from export.tuning.prompts import read_prompts
from export.tuning.replay.grid import TreeGrid, grid_for
from export.tuning.replay.latency import measure
from export.tuning.replay.record import asked, record
from export.tuning.replay.simulation import Answers, Replay, oracle, replay, static_trees
from export.tuning.tune import Found, fit, learn, split
from policy import PLAIN, FixedPolicy, LatencyModel, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.console import run_command
from runtime.policies.load import tuned_here

VARIANTS = ("resps", "resps-average", "resps-max-entropy", "ltd-depth", "ltd-size", "ltd-both", "resps+ltd")
CHECKED = [TreeSpec(2, 1, 1), TreeSpec(4, 2, 2), TreeSpec(6, 3, 3), TreeSpec(10, 4, 3)]
FOREVER = float("inf")


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--prompts", type=click.Path(path_type=Path, exists=True), help="To train with [default: the collection of resps-tune].")
@click.option("--training", default=80, show_default=True, help="How many of them.")
@click.option("--questions", default=5, show_default=True, help="Of each set, their first turns.")
@click.option("--temperature", "temperatures", multiple=True, type=float, default=(0.0, 1.0), show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--turn-seconds", default=15.0, show_default=True, help="Training time of one network.")
@click.option("--policy", "names", multiple=True, type=click.Choice(VARIANTS), help="Of the learned ones [default: all].")
@click.option("--threads", default=2, show_default=True)
@click.option("--check", is_flag=True, help="Only compare fixed trees' predicted tokens/s with the clock's: on a quiet machine.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="All figures.")
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
    names = names or VARIANTS
    with Decoder(engine_dir, policy="fixed", draft="eagle", threads=threads) as decoder:
        grid, cache = grid_for(decoder.manifest), cache_directory() / "tuning" / decoder.manifest.engine_id
        tuning = tuned_here(decoder.manifest, threads)
        latency = tuning.latency if tuning and not check else measure(decoder, grid.widths, grid.depths, grid.nodes)
        asked_of = {file.stem: read_prompts(file)[:questions] for file in sets}
        met = {
            temperature: {
                name: record(
                    decoder,
                    few,
                    grid,
                    cache,
                    FOREVER,
                    _progress,
                    SamplingParams(temperature=temperature, seed=1 if temperature else None),
                    1,
                )
                for name, few in asked_of.items()
            }
            for temperature in temperatures
        }
        if check:
            click.echo("\n".join(_checked(decoder, next(iter(asked_of.values())), met[0.0], latency, grid)))
            return
        parts = split(record(decoder, read_prompts(prompts)[:training], grid, cache, FOREVER, _progress))
        first = decoder.default_tree
        found, rate = fit(parts, latency, grid)
        trained = []
        for seed in range(seeds):
            seconds = turn_seconds * turns_of(names)
            trained.append(learn(found, parts, latency, grid, rate, names, seconds, seed, _progress))
        figures = {
            str(temperature): {name: _rates(answers, found, trained, latency, grid, first) for name, answers in by_set.items()}
            for temperature, by_set in met.items()
        }
    for temperature, by_set in figures.items():
        click.echo("\n".join(_table(temperature, by_set, found.static, first)))
    if out:
        out.write_text(json.dumps({"figures": figures, "static": str(found.static)}, indent=1))


def _rates(
    answers: Answers, found: Found, trained: Sequence[Found], latency: LatencyModel, grid: TreeGrid, first: TreeSpec
) -> dict[str, dict[str, list[float]]]:
    """Policy -> over plain decoding and tokens per cycle, one for every seed."""
    plain = replay(FixedPolicy(PLAIN), answers, latency).rate
    results: dict[str, dict[str, list[float]]] = {}

    def add(name: str, done: Replay) -> None:
        entry = results.setdefault(name, {"rate": [], "tokens": []})
        entry["rate"].append(done.rate / plain)
        entry["tokens"].append(done.tokens_per_cycle)

    add("default", replay(FixedPolicy(first), answers, latency))
    for name in ("fixed", "cost-model"):
        add(name, found.replay(name, answers, latency, grid.sizes))
    for each in trained:
        for name in each.learned:
            add(name, each.replay(name, answers, latency, grid.sizes))
    trees = static_trees(grid.widths, grid.depths, grid.nodes, grid.sizes)
    best = oracle(answers, latency, trees, plain)
    for _ in range(3):
        best = oracle(answers, latency, trees, best.rate)
    results["oracle"] = {"rate": [best.rate / plain], "tokens": [best.tokens_per_cycle]}
    return results


def _checked(decoder: Decoder, prompts: Sequence[str], met: Mapping[str, Answers], latency: LatencyModel, grid: TreeGrid) -> list[str]:
    """A table of tokens/s of fixed trees on the first set: predicted and by the clock, trees taking turns; each answer three times, its
    best."""
    answers = next(iter(met.values()))
    tokens: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for prompt in prompts:
        best: dict[str, Any] = {}
        for _ in range(3):
            for tree in (PLAIN, *CHECKED):
                stats = decoder.generate(
                    asked(decoder, prompt), SamplingParams(max_new_tokens=grid.new_tokens), policy=FixedPolicy(tree)
                ).stats
                if str(tree) not in best or stats.decode_seconds < best[str(tree)].decode_seconds:
                    best[str(tree)] = stats
        for name, stats in best.items():
            tokens[name] = tokens.get(name, 0) + stats.new_tokens - 1
            seconds[name] = seconds.get(name, 0.0) + stats.decode_seconds
    lines = ["| tree | predicted tokens/s | by the clock | |", "| --- | --- | --- | --- |"]
    for tree in (PLAIN, *CHECKED):
        predicted, really = 1000 * replay(FixedPolicy(tree), answers, latency).rate, tokens[str(tree)] / seconds[str(tree)]
        lines.append(f"| {tree} | {predicted:.1f} | {really:.1f} | {predicted / really - 1:+.1%} |")
    return lines


def _table(temperature: str, by_set: Mapping[str, Mapping[str, Any]], static: TreeSpec, first: TreeSpec) -> list[str]:
    names = list(next(iter(by_set.values())))
    lines = [f"\nTemperature {temperature}; default tree {first}, best fixed tree {static}\n"]
    lines += [f"| | {' | '.join(by_set)} | mean | tokens per cycle |", "| --- |" + " --- |" * (len(by_set) + 2)]
    for name in names:
        cells = [statistics.mean(results[name]["rate"]) for results in by_set.values()]
        seeds = [statistics.mean(each) for each in zip(*(results[name]["rate"] for results in by_set.values()), strict=True)]
        tokens = statistics.mean(statistics.mean(results[name]["tokens"]) for results in by_set.values())
        spread = f" ({min(seeds):.3f} - {max(seeds):.3f})" if len(seeds) > 1 else ""
        lines.append(f"| {name} | {' | '.join(f'{cell:.3f}' for cell in cells)} | {statistics.mean(cells):.3f}{spread} | {tokens:.2f} |")
    return lines


def _progress(step: str, done: int, total: int) -> None:
    if done in (1, total):
        click.echo(f"{step}: {done}/{total}", err=True)


if __name__ == "__main__":
    sys.exit(run_command(main, "policy_seeds"))
