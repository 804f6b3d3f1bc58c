"""Counts the answers of tree decoding that differ from plain decoding, over prompts and tree shapes.

    python -m tests.stress.check_lossless --engine-dir DIR [--drafter eagle] [--temperature T] [--prompts N] [--new-tokens N]

The baseline is plain decoding with a second dummy row (docs/design.md, losslessness). Trees are adversarial: random nodes around the true
continuation; with --drafter eagle they are the draft's. With a temperature both sides use the same seeds. For every difference the logit
margin of the two tokens is printed: above --margin it is a bug and the exit code is 1, below it is rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from policy import FixedPolicy, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.console import run_command
from runtime.decoder import Prompt
from scripts import options
from tests.support.planted import DummyRowDrafter, PlantedDrafter
from tests.support.prompts import PROMPTS

SHAPES = (
    TreeSpec(1, 0, 0),
    TreeSpec(4, 3, 1),
    TreeSpec(8, 7, 1),
    TreeSpec(11, 1, 10),
    TreeSpec(16, 4, 4),
    TreeSpec(32, 6, 4),
    TreeSpec(64, 8, 8),
)
BASELINE = FixedPolicy(TreeSpec(2, 1, 1))
"""Requests the dummy row. Under a plain policy, which the tuning may have chosen, the Decoder would not ask the drafter."""


def margin(decoder: Decoder, prompt: list[int], answer: list[int], at: int, other: int) -> float:
    """|logit difference| of the two tokens after the common prefix."""
    target = decoder.models.target
    target.cache.truncate(0)
    for _, scores in target.prefill([*prompt, *answer[:at]]):
        logits = scores.logits[0]
    return float(abs(logits[answer[at]] - logits[other]))


@click.command()
@options.engine_dir
@click.option("--drafter", type=click.Choice(["planted", "eagle", "eagle+ngram"]), default="planted", show_default=True)
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--prompts", default=len(PROMPTS), show_default=True, help="Number of the project's test prompts.")
@click.option("--new-tokens", default=64, show_default=True)
@click.option("--margin", "allowed", default=1e-4, show_default=True, help="Largest logit margin that counts as rounding.")
@click.option("--threads", default=2, show_default=True)
def main(engine_dir: Path, drafter: str, temperature: float, prompts: int, new_tokens: int, allowed: float, threads: int) -> None:
    """Print one line per shape and one per difference."""
    with Decoder(engine_dir, draft="none" if drafter == "planted" else drafter, threads=threads) as decoder:
        worst = compared(decoder, drafter == "planted", temperature, PROMPTS[:prompts], new_tokens)
    sys.exit(1 if worst > allowed else 0)


def compared(decoder: Decoder, planted: bool, temperature: float, prompts: Sequence[Prompt], new_tokens: int) -> float:
    """Prints the counts and differences; returns the largest margin, 0 if all answers are equal."""
    own, vocab = decoder.models.drafter, decoder.manifest.shape.vocab
    ids = [decoder.encode(prompt) for prompt in prompts]
    decoder.models = replace(decoder.models, drafter=DummyRowDrafter(vocab))
    draws = [SamplingParams(temperature=temperature, seed=seed) for seed in range(len(ids))]
    plain = [
        list(decoder.generate(each, replace(draw, max_new_tokens=new_tokens), policy=BASELINE).tokens)
        for each, draw in zip(ids, draws, strict=True)
    ]
    worst = 0.0
    for shape in SHAPES:
        cycles = tokens = differing = 0
        for seed, (prompt, answer) in enumerate(zip(ids, plain, strict=True)):
            decoder.models = replace(decoder.models, drafter=PlantedDrafter(len(prompt), answer, vocab, seed) if planted else own)
            result = decoder.generate(prompt, replace(draws[seed], max_new_tokens=new_tokens), policy=FixedPolicy(shape))
            cycles += result.stats.cycles
            tokens += len(answer)
            if list(result.tokens) != answer:
                differing += 1
                at = int(np.argmax([a != b for a, b in zip(result.tokens, answer, strict=False)]))
                gap = margin(decoder, prompt, answer, at, result.tokens[at])
                worst = max(worst, gap)
                click.echo(
                    f"  tree {shape}, prompt {seed}: token {at} is {result.tokens[at]}, plain has {answer[at]}; logit margin {gap:.2e}"
                )
        click.echo(f"tree {shape}: {tokens} tokens in {cycles} cycles, {differing} of {len(ids)} answers differ")
    return worst


if __name__ == "__main__":
    sys.exit(run_command(main, "check_lossless"))
