"""How much memory do forks take, and are N forks of one thread each faster than one Decoder of N threads?

    python -m scripts.lab.bench_forks --engine-dir DIR [--forks 2] [--turns 5] [--tokens 48]

Prints JSON: MiB of the process with 1, 2 and 4 forks, each after one answer; tokens per second of all forks together and of the one
Decoder, medians over alternating turns; the ratio of both.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter

import click

from runtime import Decoder, SamplingParams
from runtime.bench.questions import read_questions
from runtime.console import run_command
from scripts import options


def resident() -> float:
    """Resident memory in MiB."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / 2**20


def tokens(decoder: Decoder, prompts: list[str], limit: int) -> int:
    """Number of tokens of all answers, each of at most ``limit``."""
    total = 0
    for prompt in prompts:
        decoder.forget()
        total += len(decoder.generate(prompt, SamplingParams(max_new_tokens=limit)).tokens)
    return total


@click.command()
@options.engine_dir
@click.option("--forks", "number", type=click.IntRange(1), default=2, show_default=True)
@click.option("--turns", type=click.IntRange(1), default=5, show_default=True)
@click.option("--tokens", "limit", type=click.IntRange(1), default=48, show_default=True, help="Limit of an answer.")
def main(engine_dir: Path, number: int, turns: int, limit: int) -> None:
    """Measure memory and speed of forks."""
    prompts = [question.turns[0] for question in read_questions([], 6)]
    memory: dict[int, float] = {}
    rates: dict[str, list[float]] = {"forks": [], "one": []}
    with ExitStack() as stack:
        first = stack.enter_context(Decoder(engine_dir, threads=1))
        forks = [first]
        for count in sorted({1, 2, 4, number}):
            forks += [stack.enter_context(first.fork()) for _ in range(count - len(forks))]
            for fork in forks:
                tokens(fork, prompts[:1], 16)
            memory[count] = round(resident(), 1)
        one = stack.enter_context(Decoder(engine_dir, threads=number))
        tokens(one, prompts[:1], 16)
        shares = [prompts[share::number] for share in range(number)]
        for _ in range(turns):
            started = perf_counter()
            with ThreadPoolExecutor(number) as pool:
                total = sum(pool.map(tokens, forks[:number], shares, [limit] * number))
            rates["forks"].append(total / (perf_counter() - started))
            started = perf_counter()
            rates["one"].append(tokens(one, prompts, limit) / (perf_counter() - started))
    ratios = [forked / alone for forked, alone in zip(rates["forks"], rates["one"], strict=True)]
    medians = {name: round(median(values), 2) for name, values in rates.items()}
    report = {"memory_mib": memory, "tokens_per_second": medians, "ratio": round(median(ratios), 3)}
    click.echo(json.dumps({**report, "ratios": [round(ratio, 3) for ratio in ratios]}))


if __name__ == "__main__":
    sys.exit(run_command(main, "bench_forks"))
