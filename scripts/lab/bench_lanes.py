"""What do lanes do for shared prompts, for running answers while a long prompt comes in, and to the memory of an idle Decoder?

    python -m scripts.lab.bench_lanes --engine-dir DIR [--lanes 8]

Prints three lines. *Prefix*: clients with one system prompt of 500 tokens, three turns each; the share of prompt tokens that come from the
cache, and the median time to the first token over that of the same turns with a first token of their own, which share nothing. *Stall*:
the 99th percentile of the time between the chunks of running answers while a prompt of 2,000 tokens comes in, over the one without it.
*Memory*: resident MiB of an idle Decoder with one lane, and of one with ``--lanes``, each in its own process.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np

from policy import PLAIN, FixedPolicy
from runtime import Decoder, SamplingParams
from runtime.console import run_command

SYSTEM, QUESTION, TURNS, ANSWER, LONG = 500, 30, 3, 24, 2000  # tokens, and turns of a conversation
_RESIDENT = """
import sys
from runtime import Decoder
with Decoder(sys.argv[1], lanes=int(sys.argv[2])) as decoder:
    decoder.warmup()
    print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) >> 10)
"""


def random_tokens(decoder: Decoder, count: int, seed: int) -> list[int]:
    """Tokens without meaning, never special ones."""
    return np.random.default_rng(seed).integers(1000, decoder.manifest.shape.vocab, count).tolist()


def conversation(decoder: Decoder, client: int, shared: bool) -> tuple[list[float], int, int]:
    """Seconds to the first token of each turn, prompt tokens, and those from the cache."""
    prompt, seconds, asked, cached = random_tokens(decoder, SYSTEM, 0), [], 0, 0
    for turn in range(TURNS):
        prompt += random_tokens(decoder, QUESTION, 100 * client + turn + 1)
        own = prompt if shared else [1000 + 100 * client + turn, *prompt[1:]]
        began = time.perf_counter()
        with decoder.stream(own, SamplingParams(max_new_tokens=ANSWER)) as stream:
            chunks = [next(stream)]
            seconds.append(time.perf_counter() - began)
            chunks += stream
        prompt += [token for chunk in chunks for token in chunk.tokens]
        asked, cached = asked + stream.stats.prompt_tokens, cached + stream.stats.cached_prompt_tokens
    return seconds, asked, cached


def prefix(decoder: Decoder) -> str:
    """The line about shared prompts."""
    medians, share = [], 0.0
    for shared in (False, True):
        decoder.forget()
        with ThreadPoolExecutor(decoder.lanes) as clients:
            found = list(clients.map(lambda client: conversation(decoder, client, shared), range(decoder.lanes)))  # noqa: B023
        medians.append(statistics.median(second for seconds, _, _ in found for second in seconds))
        share = sum(cached for *_, cached in found) / sum(asked for _, asked, _ in found)
    return f"prefix: {100 * share:.0f} % of the prompt tokens from the cache, first token p50 {medians[1] / medians[0]:.2f}x of without"


def gaps(decoder: Decoder, client: int, tokens: int) -> list[tuple[float, float]]:
    """(when, seconds since the chunk before) of each chunk of one answer."""
    found, last = [], 0.0
    with decoder.stream(random_tokens(decoder, 40, client), SamplingParams(max_new_tokens=tokens, temperature=1.0, seed=client)) as stream:
        for _ in stream:
            now = time.perf_counter()
            found.append((now, now - last))
            last = now
    return found[1:]


def stall(decoder: Decoder) -> str:
    """The line about a long prompt."""
    decoder.forget()
    long = random_tokens(decoder, min(LONG, decoder.manifest.limits.context - 2), 7)
    with ThreadPoolExecutor(decoder.lanes) as clients:
        running = [clients.submit(gaps, decoder, client, 150) for client in range(decoder.lanes - 1)]
        time.sleep(4.0)
        began = time.perf_counter()
        decoder.generate(long, SamplingParams(max_new_tokens=1), policy=FixedPolicy(PLAIN))
        ended = time.perf_counter()
        found = [gap for each in running for gap in each.result()]
    inside = [seconds for when, seconds in found if began < when < ended]
    outside = [seconds for when, seconds in found if ended < when]
    quiet, loud = (float(np.percentile(each, 99)) if each else float("nan") for each in (outside, inside))
    return f"stall: inter-chunk p99 {1000 * loud:.0f} ms beside a prompt of {len(long)} tokens, {loud / quiet:.2f}x of without"


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--lanes", type=click.IntRange(min=2), default=8, show_default=True)
def main(engine_dir: Path, lanes: int) -> None:
    """Print the three lines."""
    with Decoder(engine_dir, lanes=lanes) as decoder:
        decoder.warmup()
        click.echo(prefix(decoder))
        click.echo(stall(decoder))
    resident = [
        int(subprocess.run([sys.executable, "-c", _RESIDENT, engine_dir, str(count)], check=True, capture_output=True, text=True).stdout)
        for count in (1, lanes)
    ]
    click.echo(f"memory: {resident[0]} MiB with 1 lane, {resident[1]} with {lanes}, idle")


if __name__ == "__main__":
    sys.exit(run_command(main, "bench_lanes"))
