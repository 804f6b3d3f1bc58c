"""What happens as the context grows: speed, first token, memory; and what a round costs the host.

    python -m scripts.lab.bench_growth --engine-dir DIR [--engine-dir DIR...] [--context 128 --context 512 ...] [--policy NAME]

Prompts are passages of Python's language reference, cut to the length. Plain decoding and the policy take turns; medians. Loading and
memory are measured in processes of their own. For 8k tokens export with `--max-context 8192`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tracemalloc
from pathlib import Path

import click

from policy import Policy
from runtime import Decoder, SamplingParams
from runtime.console import run_command
from runtime.decoding.stats import Stats
from scripts.lab.bench_context import passage

MIB = 1 << 20
OF_A_PROCESS = """
import json, sys, time
from pathlib import Path
from runtime import Decoder
def resident(): return 1024 * int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
started = time.perf_counter()
decoder = Decoder(sys.argv[1], threads=int(sys.argv[2]))
loaded, sizes = time.perf_counter() - started, [resident()]
for tokens in json.loads(sys.stdin.read()):
    decoder.generate(tokens, max_new_tokens=2)
    sizes.append(resident())
print(json.dumps([loaded, sizes]))
"""


def decoded(decoder: Decoder, prompt: list[int], policy: Policy, tokens: int) -> Stats:
    """An answer's figures; the whole prompt is read."""
    decoder.forget()
    return decoder.generate(prompt, SamplingParams(max_new_tokens=tokens), policy=policy).stats


def growth(decoder: Decoder, policy: Policy, lengths: tuple[int, ...], prompts: int, tokens: int) -> None:
    """A line per length."""
    click.echo("| context | plain tokens/s | policy tokens/s | ratio | tokens a cycle | prefill ms | prefill tokens/s |")
    click.echo("| --- | --- | --- | --- | --- | --- | --- |")
    arms = {"plain": decoder.policy("none"), "policy": policy}
    for length in lengths:
        found: dict[str, list[Stats]] = {name: [] for name in arms}
        for number in range(prompts):
            prompt = passage(decoder, length, seed=number)
            for name in sorted(arms, reverse=number % 2 == 1):
                found[name].append(decoded(decoder, prompt, arms[name], tokens))
        plains, rates = ([each.tokens_per_second for each in found[name]] for name in arms)
        ratios = [rate / plain for rate, plain in zip(rates, plains, strict=True)]
        cycles = [each.tokens_per_cycle for each in found["policy"]]
        waits = [each.prefill_seconds for each in found["policy"]]
        one, two, ratio, cycle, wait = (statistics.median(each) for each in (plains, rates, ratios, cycles, waits))
        click.echo(f"| {length} | {one:.1f} | {two:.1f} | {ratio:.2f}x | {cycle:.2f} | {1000 * wait:.0f} | {length / wait:.0f} |")


def of_a_process(engine_dir: Path, decoder: Decoder, lengths: tuple[int, ...], threads: int, turns: int) -> None:
    """How long loading takes, and what memory a token of context takes: the slope between the shortest and the longest prompt."""
    prompts = json.dumps([passage(decoder, length, seed=0) for length in (min(lengths), max(lengths))])
    loads: list[float] = []
    slopes: list[float] = []
    start: list[float] = []
    for _ in range(turns):
        code = [sys.executable, "-c", OF_A_PROCESS, str(engine_dir), str(threads)]
        loaded, (begun, short, long) = json.loads(subprocess.run(code, input=prompts, capture_output=True, text=True, check=True).stdout)
        loads.append(loaded)
        start.append(begun / MIB)
        slopes.append((long - short) / 1024 / (max(lengths) - min(lengths)))
    load, size, slope = statistics.median(loads), statistics.median(start), statistics.median(slopes)
    click.echo(f"load {load:.1f} s, {size:.0f} MiB once loaded, {slope:.0f} KiB for a token of context")


def of_a_round(decoder: Decoder, policy: Policy, name: str) -> None:
    """What the host takes of a round's time, and the most that a round holds in fresh Python and numpy memory."""
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
        f"{name}: host {100 * host:.1f} % of a round, {statistics.median(peaks) / 1024:.1f} KiB a round, at most {max(peaks) / 1024:.1f}"
    )


@click.command()
@click.option("--engine-dir", "engine_dirs", type=click.Path(path_type=Path, exists=True), multiple=True, required=True)
@click.option("--context", "lengths", type=int, multiple=True, default=(128, 512, 2048), show_default=True, help="Prompt tokens.")
@click.option("--policy", help="Beside plain decoding [default: as tuned].")
@click.option("--prompts", default=5, show_default=True, help="Of each length.")
@click.option("--max-new-tokens", default=48, show_default=True)
@click.option("--turns", default=3, show_default=True, help="Processes that load the engine.")
@click.option("--threads", default=2, show_default=True)
def main(
    engine_dirs: tuple[Path, ...],
    lengths: tuple[int, ...],
    policy: str | None,
    prompts: int,
    max_new_tokens: int,
    turns: int,
    threads: int,
) -> None:
    """Tables of every directory."""
    for engine_dir in engine_dirs:
        with Decoder(engine_dir, threads=threads) as decoder:
            chosen = decoder.policy(policy)
            click.echo(f"{engine_dir.name} ({decoder.manifest.precision})")
            of_a_process(engine_dir, decoder, lengths, threads, turns)
            of_a_round(decoder, decoder.policy("none"), "plain decoding")
            of_a_round(decoder, chosen, policy or "the policy")
            growth(decoder, chosen, lengths, prompts, max_new_tokens)


if __name__ == "__main__":
    sys.exit(run_command(main, "bench_growth"))
