"""Two drafts of one target, question by question in turns: tokens per cycle with a fixed tree, and speed as the engine comes.

    python -m scripts.lab.compare_drafts --before DIR --after DIR QUESTIONS.jsonl...

Both engine directories are of the same target and precision. Tokens per cycle are counted without lookup; speed is that of the default
drafter and of the policy that each engine brings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from policy import FixedPolicy, Policy, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.bench.questions import read_questions
from runtime.console import run_command

PLACE = click.Path(path_type=Path, exists=True, file_okay=False)


@dataclass
class Side:
    """One engine, and what its answers to the set took so far."""

    decoder: Decoder
    policy: Policy | None
    tokens: int = 0
    cycles: int = 0
    seconds: float = 0.0

    def ask(self, text: str, params: SamplingParams) -> tuple[int, ...]:
        """The answer's tokens."""
        self.decoder.forget()
        answer = self.decoder.generate([{"role": "user", "content": text}], params, policy=self.policy)
        self.tokens += len(answer.tokens) - 1  # the first one is the prompt's
        self.cycles += answer.stats.cycles
        self.seconds += answer.stats.decode_seconds
        return answer.tokens


def compare(
    decoders: list[Decoder], policy: Policy | None, texts: list[str], params: Callable[[int], SamplingParams]
) -> tuple[list[Side], int]:
    """Both sides after all texts, which they answer in turns, and how many tokens differ."""
    sides, different = [Side(each, policy) for each in decoders], 0
    for number, text in enumerate(texts):
        order = sides if number % 2 else sides[::-1]
        one, other = (side.ask(text, params(number)) for side in order)
        different += sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))
    return sides, different


@click.command(context_settings={"show_default": True})
@click.option("--before", type=PLACE, required=True, metavar="ENGINE_DIR")
@click.option("--after", type=PLACE, required=True, metavar="ENGINE_DIR")
@click.option("--questions", type=int, default=6, help="Of each set; only first turns.")
@click.option("--new-tokens", type=int, default=96)
@click.option("--temperature", "temperatures", type=float, multiple=True, default=(0.0, 0.7, 1.0))
@click.option("--tree", default="16,5,4", help="For the tokens per cycle.")
@click.option("--speed", is_flag=True, help="Compare the engines as they come, with their own policies and lookup, and their speed.")
@click.option("--threads", type=int, default=2)
@click.argument("sets", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(
    before: Path,
    after: Path,
    questions: int,
    new_tokens: int,
    temperatures: tuple[float, ...],
    tree: str,
    speed: bool,
    threads: int,
    sets: Any,
) -> None:
    """Print for each set and temperature what both drafts reach."""
    drafter, policy = (None, None) if speed else ("eagle", FixedPolicy(TreeSpec(*map(int, tree.split(",")))))
    with Decoder(before, draft=drafter, threads=threads) as old, Decoder(after, draft=drafter, threads=threads) as new:
        for each in (old, new):
            each.warmup()
        for temperature in temperatures:
            ratios, reached = [], []
            for file in sets:
                texts = [question.turns[0] for question in read_questions([file], questions)]

                def params(number: int, temperature: float = temperature) -> SamplingParams:
                    return SamplingParams(max_new_tokens=new_tokens, temperature=temperature, seed=number)

                sides, different = compare([old, new], policy, texts, params)
                cycles = [side.tokens / side.cycles for side in sides]
                rates = [side.tokens / side.seconds for side in sides]
                ratios.append(rates[1] / rates[0])
                reached.append(cycles)
                said = f"{cycles[0]:.2f} and {cycles[1]:.2f} tokens per cycle"
                if speed:
                    said += f", {rates[0]:.1f} and {rates[1]:.1f} tokens/s ({ratios[-1]:.2f}x)"
                click.echo(f"T = {temperature:g}, {file.stem}: {said}; {different} tokens differ")
            one, other = map(fmean, zip(*reached, strict=True))
            said = f", {fmean(ratios):.3f}x, lowest set {min(ratios):.2f}x" if speed else ""
            click.echo(f"T = {temperature:g}, mean: {one:.2f} and {other:.2f} tokens per cycle{said}")


if __name__ == "__main__":
    sys.exit(run_command(main, "compare_drafts"))
