"""Tokens per cycle as the prompt grows: does the draft stay right beyond the lengths it was trained for?

    python -m scripts.lab.bench_context --engine-dir DIR [--tree 6,3,3] [--length 256 --length 1024 ...] [--prompts N] [--max-new-tokens N]

Prompts are passages of Python's language reference, cut to the length, with a request for a summary. To compare attention windows, export
again with another ``max_position_embeddings`` in a copy of the draft's config.json (--draft-weights).
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import click

from export.training.openings import library_passages
from policy import FixedPolicy, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.console import run_command

REQUEST = "\n\nSummarize the text above."


def text_of(decoder: Decoder, length: int, choice: random.Random) -> str:
    """Passages of about ``length`` tokens, at most that many."""
    passages = library_passages(600)
    words: list[str] = []
    while len(decoder._tokenizer.encode(" ".join(words))) < length:
        words += choice.choice(passages).split(" ")
    while len(decoder._tokenizer.encode(" ".join(words))) > length:
        words = words[: max(1, int(len(words) * 0.97))]
    return " ".join(words)


def prompt_of(decoder: Decoder, length: int, choice: random.Random) -> list[dict[str, str]]:
    """One user turn of about ``length`` tokens."""
    return [{"role": "user", "content": text_of(decoder, length, choice) + REQUEST}]


def passage(decoder: Decoder, length: int, seed: int) -> list[int]:
    """A user turn of exactly ``length`` tokens: what is too much is cut away at the front."""
    return decoder.encode(prompt_of(decoder, length, random.Random(f"{length} {seed}")))[-length:]


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path), required=True)
@click.option("--tree", default="6,3,3", show_default=True, help="NODES,DEPTH,WIDTH")
@click.option("--length", "lengths", multiple=True, type=int, default=(128, 256, 512, 1024, 2048, 3500), show_default=True)
@click.option("--prompts", default=4, show_default=True, help="For each length.")
@click.option("--max-new-tokens", default=64, show_default=True)
def main(engine_dir: Path, tree: str, lengths: tuple[int, ...], prompts: int, max_new_tokens: int) -> None:
    """One line per length."""
    spec = TreeSpec.parse(tree)
    with Decoder(engine_dir, draft="eagle") as decoder:
        for length in lengths:
            choice, tokens, cycles = random.Random(length), 0, 0
            for _ in range(prompts):
                stats = decoder.generate(
                    prompt_of(decoder, length, choice), SamplingParams(max_new_tokens=max_new_tokens), policy=FixedPolicy(spec)
                ).stats
                tokens, cycles = tokens + stats.new_tokens - 1, cycles + stats.cycles
            click.echo(f"{length} prompt tokens: {tokens / max(1, cycles):.2f} tokens per cycle over {cycles} cycles")


if __name__ == "__main__":
    sys.exit(run_command(main, "bench_context"))
