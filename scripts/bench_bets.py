"""What bets on repeated text bring: the same engine and policies with and without them, arms taking turns question by question.

    python scripts/bench_bets.py --engine-dir DIR [--policy fixed --policy cost-model] [--tree 5,3,2] QUESTIONS.jsonl...

Two Decoders in one process, one for each drafter. Prints, for every set, medians over questions of tokens/s over plain decoding's on the
same question, and tokens per cycle; the mean counts every set the same. Says how many tokens differ from plain decoding's.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from pathlib import Path

import click

from export.tuning.prompts import read_prompts
from export.tuning.replay.record import asked
from policy import FixedPolicy, Policy, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.console import run_command
from runtime.decoding.stats import Stats

DRAFTERS = ("eagle", "eagle+ngram")


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--policy", "names", multiple=True, default=("fixed", "cost-model"), show_default=True)
@click.option("--tree", "trees", multiple=True, help="Fixed trees: NODES,DEPTH,WIDTH.")
@click.option("--questions", default=4, show_default=True, help="Of each set, their first turns.")
@click.option("--max-new-tokens", default=64, show_default=True)
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.argument("sets", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(
    engine_dir: Path,
    names: tuple[str, ...],
    trees: tuple[str, ...],
    questions: int,
    max_new_tokens: int,
    temperature: float,
    threads: int,
    sets: tuple[Path, ...],
) -> None:
    """A table in Markdown."""
    asked_of = {file.stem: read_prompts(file)[:questions] for file in sets}
    decoders = {drafter: Decoder(engine_dir, draft=drafter, threads=threads) for drafter in DRAFTERS}
    arms: dict[str, tuple[Decoder, Policy]] = {"none": (decoders["eagle"], decoders["eagle"].policy("none"))}
    for drafter, decoder in decoders.items():
        arms |= {f"{drafter}, {tree}": (decoder, FixedPolicy(TreeSpec.parse(tree))) for tree in trees}
        arms |= {f"{drafter}, {name}": (decoder, decoder.policy(name)) for name in names}
    found: dict[str, dict[str, list[Stats]]] = {name: {} for name in arms}
    differing = compared = turn = 0
    for number in range(questions):
        for stem in [stem for stem, prompts in asked_of.items() if number < len(prompts)]:
            prompt, results = asked_of[stem][number], {}
            for place in range(len(arms)):
                name = list(arms)[(place + turn) % len(arms)]
                decoder, policy = arms[name]
                decoder.forget()
                seed = SamplingParams(temperature=temperature, seed=turn)
                results[name] = decoder.generate(asked(decoder, prompt), replace(seed, max_new_tokens=max_new_tokens), policy=policy)
                found[name].setdefault(stem, []).append(results[name].stats)
            turn += 1
            for result in results.values():
                compared += len(result.tokens)
                differing += sum(a != b for a, b in zip(result.tokens, results["none"].tokens, strict=False))
    lines = [f"| | {' | '.join(asked_of)} | mean |", "| --- |" + " --- |" * (len(asked_of) + 1)]
    for name, by_set in found.items():
        cells = [_cell(by_set[stem], found["none"][stem]) for stem in asked_of]
        cells.append((statistics.mean(ratio for ratio, _ in cells), statistics.mean(tokens for _, tokens in cells)))
        lines.append(f"| {name} | " + " | ".join(f"{ratio:.2f}x {tokens:.2f}" for ratio, tokens in cells) + " |")
    click.echo("\n".join([*lines, "", f"{differing} of {compared} tokens differ"]))


def _cell(stats: list[Stats], plain: list[Stats]) -> tuple[float, float]:
    """(median of the ratios, tokens per cycle)"""
    ratios = [one.tokens_per_second / other.tokens_per_second for one, other in zip(stats, plain, strict=True) if one.cycles]
    return statistics.median(ratios), sum(each.new_tokens - 1 for each in stats) / max(1, sum(each.cycles for each in stats))


if __name__ == "__main__":
    sys.exit(run_command(main, "bench_bets"))
