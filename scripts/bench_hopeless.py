"""What speculation costs or brings where no draft can guess: after random ids, and after requests in languages that the draft never saw.

    python scripts/bench_hopeless.py --engine-dir DIR [--draft eagle]

The engine as it comes beside plain decoding, taking turns prompt by prompt. Prints, for each kind of text, the median and the least of the
ratios of tokens/s over plain decoding's, the ratio of sums, and tokens per cycle. Stop tokens end an answer as always.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import click
import numpy as np

from runtime import Decoder, SamplingParams
from runtime.console import run_command
from runtime.decoding.stats import Stats

REQUESTS = {
    "Finnish": "Kirjoita minulle pitkä kertomus siitä, miten vanha kalastaja lähti talvella järvelle ja mitä hän siellä näki.",
    "Hungarian": "Írj egy hosszú mesét egy öreg halászról, aki télen kiment a tóra, és mesélj arról, mit látott ott.",
    "Chinese": "请写一个关于老渔夫冬天去湖边的长故事,并描述他在那里看到了什么。",
    "Russian": "Напиши длинный рассказ о старом рыбаке, который зимой вышел на озеро, и о том, что он там увидел.",
}


def random_ids(decoder: Decoder, count: int, length: int) -> list[list[int]]:
    """Ids of the vocabulary but the ones that end an answer."""
    vocab, stop = decoder.manifest.shape.vocab, decoder.manifest.tokens.stop
    known = np.setdiff1d(np.arange(vocab), stop)
    return [np.random.default_rng(seed).choice(known, length).tolist() for seed in range(count)]


def ask(decoder: Decoder, prompts: list[list[int]], tokens: int) -> list[tuple[Stats, Stats]]:
    """(plain decoding, as the engine comes) for every prompt; who begins changes from prompt to prompt."""
    found = []
    for number, prompt in enumerate(prompts):
        stats: dict[str | None, Stats] = {}
        answers = set()
        for policy in ("none", None) if number % 2 else (None, "none"):
            decoder.forget()
            result = decoder.generate(prompt, SamplingParams(max_new_tokens=tokens), policy=policy)
            stats[policy] = result.stats
            answers.add(result.tokens)
        if len(answers) > 1:
            click.echo(f"NOT LOSSLESS: the answers to prompt {number} differ")
        found.append((stats["none"], stats[None]))
    return found


def line(name: str, found: list[tuple[Stats, Stats]]) -> str:
    """Answers of one token have no speed."""
    found = [(plain, ours) for plain, ours in found if plain.cycles and ours.cycles]
    if not found:
        return f"{name}: no answer has a second token"
    ratios = [ours.tokens_per_second / plain.tokens_per_second for plain, ours in found]
    rates = [sum(each[arm].new_tokens - 1 for each in found) / sum(each[arm].decode_seconds for each in found) for arm in (0, 1)]
    cycles = statistics.mean(ours.tokens_per_cycle for _, ours in found)
    return (
        f"{name}: median {statistics.median(ratios):.2f}x, least {min(ratios):.2f}x, of sums {rates[1] / rates[0]:.2f}x, "
        f"{cycles:.2f} tokens a cycle, {len(found)} answers"
    )


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--draft", type=click.Choice(["eagle", "eagle+ngram", "ngram"]), help="[default: the engine's]")
@click.option("--prompts", default=6, show_default=True, type=click.IntRange(1), help="Of random ids.")
@click.option("--length", default=100, show_default=True, type=click.IntRange(1), help="Of each of them, in tokens.")
@click.option("--max-new-tokens", default=128, show_default=True, type=click.IntRange(2))
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
def main(engine_dir: Path, draft: str | None, prompts: int, length: int, max_new_tokens: int, threads: int) -> None:
    """One line for each kind of text."""
    with Decoder(engine_dir, draft=draft, threads=threads) as decoder:
        ask(decoder, random_ids(decoder, 2, 8), 8)  # warms up, and does not count
        for name, asked in (
            ("random ids", random_ids(decoder, prompts, length)),
            ("other languages", [decoder.encode(text) for text in REQUESTS.values()]),
        ):
            click.echo(line(name, ask(decoder, asked, max_new_tokens)))


if __name__ == "__main__":
    sys.exit(run_command(main, "bench_hopeless"))
