"""Tokens per second and per cycle of several fixed trees against plain decoding, taking turns prompt by prompt in one process.

    python scripts/bench_trees.py --engine-dir ENGINE_DIR [--prompts FILE.jsonl]... [--tree 6,5,2]... [--draft ngram]

Without --prompts the project's own test prompts are asked. A prompts file has one object a line with ``turns``, a list of user messages, of
which the first is asked. Ratios are of total tokens over total decode seconds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from policy import PLAIN, FixedPolicy, TreeSpec
from runtime import Decoder
from tests.prompts import PROMPTS, chat


def asked(files: tuple[Path, ...], most: int) -> list[Any]:
    """At most ``most`` prompts per file."""
    if not files:
        return list(PROMPTS)[:most]
    return [chat(json.loads(line)["turns"][0]) for file in files for line in file.read_text().splitlines()[:most]]


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--prompts", type=click.Path(path_type=Path, exists=True), multiple=True)
@click.option("--tree", "trees", multiple=True, default=["4,3,1", "6,5,2", "8,7,2", "16,8,3"], show_default=True)
@click.option("--most", default=32, show_default=True, help="Prompts per file.")
@click.option("--new-tokens", default=128, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--draft", help="Drafter [default: the directory's].")
def main(
    engine_dir: Path, prompts: tuple[Path, ...], trees: tuple[str, ...], most: int, new_tokens: int, threads: int, draft: str | None
) -> None:
    """Print one line per tree: tokens/s, relative to plain decoding, tokens per cycle, share of drafted tokens accepted."""
    specs = [PLAIN, *(TreeSpec.parse(tree) for tree in trees)]
    sums = {spec: {"tokens": 0.0, "seconds": 0.0, "cycles": 0.0, "drafted": 0.0, "accepted": 0.0} for spec in specs}
    with Decoder(engine_dir, draft=draft, threads=threads) as decoder:
        for prompt in asked(prompts, most):
            for spec in specs:
                stats = decoder.generate(prompt, max_new_tokens=new_tokens, policy=FixedPolicy(spec)).stats
                for key, value in zip(
                    sums[spec], (stats.new_tokens - 1, stats.decode_seconds, stats.cycles, stats.drafted, stats.accepted), strict=True
                ):
                    sums[spec][key] += value
    plain = sums[PLAIN]["tokens"] / sums[PLAIN]["seconds"]
    for spec, each in sums.items():
        rate, share = each["tokens"] / each["seconds"], each["accepted"] / max(1, each["drafted"])
        click.echo(
            f"{spec!s:>8}  {rate:6.1f} tokens/s  {rate / plain:.3f}x  {each['tokens'] / each['cycles']:.2f} a cycle  {share:.0%} accepted"
        )


if __name__ == "__main__":
    main()
