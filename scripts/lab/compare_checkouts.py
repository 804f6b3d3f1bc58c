"""Decodes the same questions with two checkouts of this project in turns, and compares tokens and speed.

    python -m scripts.lab.compare_checkouts --before CHECKOUT ENGINE_DIR --after CHECKOUT ENGINE_DIR

Each checkout runs in a process of its own. Both decode one question, then the next, so that a change of the machine's speed meets both.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = ROOT / "runtime" / "bench" / "mixed.jsonl"
CONTENDERS = ("none", "fixed", "sampled")  # the last with a fixed tree
WORKER = """
import json, sys
from runtime import Decoder, SamplingParams
with Decoder(sys.argv[1], threads=2) as decoder:
    decoder.warmup()
    for line in sys.stdin:
        contender, question, new_tokens = json.loads(line)
        sampling = {"temperature": 0.9, "top_p": 0.95, "seed": 1} if contender == "sampled" else {}
        decoder.forget()
        policy = "fixed" if contender == "sampled" else contender
        prompt = [{"role": "user", "content": question}]
        result = decoder.generate(prompt, SamplingParams(max_new_tokens=new_tokens, **sampling), policy=policy)
        print(json.dumps([result.tokens, result.stats.tokens_per_second]), flush=True)
"""
PLACE = click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True)


class Side:
    """One checkout with one engine directory, in a process."""

    def __init__(self, checkout: Path, engine_dir: Path) -> None:
        line = [sys.executable, "-c", WORKER, str(engine_dir)]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout)

    def ask(self, contender: str, question: str, new_tokens: int) -> tuple[list[int], float]:
        """The tokens of the answer, and tokens per second."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([contender, question, new_tokens]), file=self._process.stdin, flush=True)
        tokens, speed = json.loads(self._process.stdout.readline())
        return tokens, speed


@click.command(context_settings={"show_default": True})
@click.option("--before", type=(PLACE, PLACE), required=True, metavar="CHECKOUT ENGINE_DIR")
@click.option("--after", type=(PLACE, PLACE), required=True, metavar="CHECKOUT ENGINE_DIR")
@click.option("--questions", type=int, default=12)
@click.option("--new-tokens", type=int, default=32)
def main(before: tuple[Path, Path], after: tuple[Path, Path], questions: int, new_tokens: int) -> None:
    """Print, for every contender, the median ratio of speeds after / before, and how many tokens differ."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    sides = [Side(*before), Side(*after)]
    for contender in CONTENDERS:
        ratios, different, total = [], 0, 0
        for number, each in enumerate(lines[:questions]):
            order = sides if number % 2 == 0 else sides[::-1]
            found = {side: side.ask(contender, each["turns"][0], new_tokens) for side in order}
            (old, old_speed), (new, new_speed) = found[sides[0]], found[sides[1]]
            ratios.append(new_speed / old_speed)
            different += sum(one != other for one, other in zip(old, new, strict=False)) + abs(len(old) - len(new))
            total += len(old)
        click.echo(f"{contender}: {median(ratios):.2f} times as fast, {different} of {total} tokens differ")


if __name__ == "__main__":
    main()
