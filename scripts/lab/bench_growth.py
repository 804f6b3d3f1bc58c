"""How do speed, time to the first token and memory change as the context grows, and what does a round cost the host?

    python -m scripts.lab.bench_growth --engine-dir DIR [--engine-dir DIR...] [--context 128 --context 512 ...] [--policy NAME]

With a fixed tree the tokens per cycle show whether a draft stays accurate beyond the lengths it was trained for:

    python -m scripts.lab.bench_growth --engine-dir DIR --draft eagle --tree 5,3,2 --context 256 --context 3500

Prompts are passages of Python's language reference, cut to the length. Plain decoding and the policy alternate; figures are medians.
Loading time and memory are measured in processes of their own. For 8k tokens export with `--max-context 8192`.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tracemalloc
from pathlib import Path

import click

from export.training.words.seed_prompts import library_passages
from policy import FixedPolicy, Policy, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.console import run_command, usage_errors
from runtime.decoding.stats import Stats
from scripts import options

MIB = 1 << 20
PROCESS_PROGRAM = """
import json, sys, time
from pathlib import Path
from runtime import Decoder, SamplingParams
def resident(): return 1024 * int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
started = time.perf_counter()
decoder = Decoder(sys.argv[1], threads=int(sys.argv[2]), draft=sys.argv[3])
loaded, sizes = time.perf_counter() - started, [resident()]
for tokens in json.loads(sys.stdin.read()):
    decoder.generate(tokens, SamplingParams(max_new_tokens=2))
    sizes.append(resident())
print(json.dumps([loaded, sizes]))
"""


def passage(decoder: Decoder, length: int, seed: int) -> list[int]:
    """A user turn of exactly ``length`` tokens that asks for a summary; the text's beginning is cut away."""
    choice, passages, words = random.Random(f"{length} {seed}"), library_passages(600), ""
    while len(tokens := decoder.tokenizer.encode([{"role": "user", "content": f"{words}\n\nSummarize the text above."}])) < length:
        words = f"{choice.choice(passages)} {words}"
    return tokens[-length:]


def decoded(decoder: Decoder, prompt: list[int], policy: Policy, tokens: int) -> Stats:
    """Figures of one answer; the whole prompt is computed."""
    decoder.forget()
    return decoder.generate(prompt, SamplingParams(max_new_tokens=tokens), policy=policy).stats


def measure_contexts(decoder: Decoder, policy: Policy, lengths: tuple[int, ...], prompts: int, tokens: int) -> None:
    """Print a line for each context length."""
    click.echo("| context | plain tokens/s | policy tokens/s | ratio | tokens per cycle | prefill ms | prefill tokens/s |")
    click.echo("| --- | --- | --- | --- | --- | --- | --- |")
    contenders = {"plain": decoder.policy("none"), "policy": policy}
    for length in lengths:
        stats: dict[str, list[Stats]] = {name: [] for name in contenders}
        for number in range(prompts):
            prompt = passage(decoder, length, seed=number)
            for name in sorted(contenders, reverse=number % 2 == 1):
                stats[name].append(decoded(decoder, prompt, contenders[name], tokens))
        plains, rates = ([answer.tokens_per_second for answer in stats[name]] for name in contenders)
        ratios = [rate / plain for rate, plain in zip(rates, plains, strict=True)]
        cycles = [answer.tokens_per_cycle for answer in stats["policy"]]
        waits = [answer.prefill_seconds for answer in stats["policy"]]
        one, two, ratio, cycle, wait = (statistics.median(values) for values in (plains, rates, ratios, cycles, waits))
        click.echo(f"| {length} | {one:.1f} | {two:.1f} | {ratio:.2f}x | {cycle:.2f} | {1000 * wait:.0f} | {length / wait:.0f} |")


def measure_process(engine_dir: Path, decoder: Decoder, lengths: tuple[int, ...], threads: int, turns: int) -> None:
    """Loading time, and memory per token of context: the slope between the shortest and the longest prompt."""
    prompts = json.dumps([passage(decoder, length, seed=0) for length in (min(lengths), max(lengths))])
    loads: list[float] = []
    slopes: list[float] = []
    start: list[float] = []
    for _ in range(turns):
        code = [sys.executable, "-c", PROCESS_PROGRAM, str(engine_dir), str(threads), decoder.draft]
        loaded, (empty, short, long) = json.loads(subprocess.run(code, input=prompts, capture_output=True, text=True, check=True).stdout)
        loads.append(loaded)
        start.append(empty / MIB)
        slopes.append((long - short) / 1024 / (max(lengths) - min(lengths)))
    load, size, slope = statistics.median(loads), statistics.median(start), statistics.median(slopes)
    click.echo(f"load {load:.1f} s, {size:.0f} MiB once loaded, {slope:.0f} KiB per token of context")


def measure_round(decoder: Decoder, policy: Policy, name: str) -> None:
    """The host's share of a round's time, and the Python and numpy memory that a round allocates."""
    prompt = passage(decoder, 100, seed=1)
    stats = decoded(decoder, prompt, policy, 128)
    host = 1 - (stats.draft_seconds + stats.verify_seconds) / stats.decode_seconds
    tracemalloc.start()
    peaks = []
    with decoder.stream(prompt, SamplingParams(max_new_tokens=128), policy=policy) as stream:
        next(stream)
        before = tracemalloc.get_traced_memory()[0]
        for _ in stream:
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    click.echo(
        f"{name}: host {100 * host:.1f} % of a round, {statistics.median(peaks) / 1024:.1f} KiB per round, at most {max(peaks) / 1024:.1f}"
    )


@click.command()
@options.engine_dirs
@click.option("--context", "lengths", type=int, multiple=True, default=(128, 512, 2048), show_default=True, help="Prompt tokens.")
@click.option("--policy", help="Compared with plain decoding [default: as tuned].")
@click.option("--tree", help="Compare a fixed tree instead: NODES,DEPTH,WIDTH.")
@click.option("--draft", help="What proposes trees [default: as resps-run].")
@click.option("--prompts", default=5, show_default=True, help="Number of prompts of each length.")
@click.option("--max-new-tokens", default=48, show_default=True)
@click.option("--turns", default=3, show_default=True, help="Number of processes that load the engine.")
@click.option("--threads", default=2, show_default=True)
def main(
    engine_dirs: tuple[Path, ...],
    lengths: tuple[int, ...],
    policy: str | None,
    tree: str | None,
    draft: str | None,
    prompts: int,
    max_new_tokens: int,
    turns: int,
    threads: int,
) -> None:
    """Print the tables of every directory."""
    if policy and tree:
        raise click.UsageError("--tree is a policy of its own: give it or --policy")
    with usage_errors():
        fixed = FixedPolicy(TreeSpec.parse(tree)) if tree else None
    for engine_dir in engine_dirs:
        with usage_errors():
            opened = Decoder(engine_dir, threads=threads, draft=draft)
        with opened as decoder:
            chosen = fixed or decoder.policy(policy)
            click.echo(f"{engine_dir.name} ({decoder.manifest.precision})")
            measure_process(engine_dir, decoder, lengths, threads, turns)
            measure_round(decoder, decoder.policy("none"), "plain decoding")
            measure_round(decoder, chosen, tree or policy or "the policy")
            measure_contexts(decoder, chosen, lengths, prompts, max_new_tokens)


if __name__ == "__main__":
    sys.exit(run_command(main, "bench_growth"))
