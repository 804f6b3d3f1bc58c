"""What forks cost in memory and bring in speed: N forks on one thread each, in N threads, beside one Decoder on N threads; taking turns.

    python scripts/bench_forks.py --engine-dir DIR [--forks 2] [--turns 5] [--tokens 48]

Prints JSON: MiB of the process with 1, 2 and 4 forks, each after an answer; tokens per second of all together, medians over the turns; their
ratio.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter

from runtime import Decoder
from runtime.bench.questions import read_questions


def resident() -> float:
    """MiB of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / 2**20


def tokens(decoder: Decoder, prompts: list[str], most: int) -> int:
    """Answer all of them, prompts included in the time."""
    came = 0
    for prompt in prompts:
        decoder.forget()
        came += len(decoder.generate(prompt, max_new_tokens=most).tokens)
    return came


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--engine-dir", type=Path, required=True)
    parser.add_argument("--forks", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    prompts = [question.turns[0] for question in read_questions([], 6)]
    memory, rates = {}, {"forks": [], "one": []}  # type: dict[int, float], dict[str, list[float]]
    with ExitStack() as stack:
        first = stack.enter_context(Decoder(options.engine_dir, threads=1))
        forks = [first]
        for count in sorted({1, 2, 4, options.forks}):
            forks += [stack.enter_context(first.fork()) for _ in range(count - len(forks))]
            for fork in forks:
                tokens(fork, prompts[:1], 16)
            memory[count] = round(resident(), 1)
        one = stack.enter_context(Decoder(options.engine_dir, threads=options.forks))
        tokens(one, prompts[:1], 16)
        shares = [prompts[number :: options.forks] for number in range(options.forks)]
        for _ in range(options.turns):
            begun = perf_counter()
            with ThreadPoolExecutor(options.forks) as pool:
                came = sum(pool.map(lambda pair: tokens(*pair, options.tokens), zip(forks, shares, strict=False)))
            rates["forks"].append(came / (perf_counter() - begun))
            begun = perf_counter()
            rates["one"].append(tokens(one, prompts, options.tokens) / (perf_counter() - begun))
    ratios = [forked / alone for forked, alone in zip(rates["forks"], rates["one"], strict=True)]
    medians = {arm: round(median(values), 2) for arm, values in rates.items()}
    print(json.dumps({"memory_mib": memory, "tokens_per_second": medians, "ratio": round(median(ratios), 3),  # noqa: T201
                      "ratios": [round(ratio, 3) for ratio in ratios]}))  # fmt: skip


if __name__ == "__main__":
    main()
