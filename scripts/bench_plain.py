"""Plain decoding side by side with transformers and onnxruntime-genai on the same fp32 weights, and the cost of a pass by rows.

    pip install onnxruntime-genai onnx-ir transformers torch==2.13.0
    python scripts/bench_plain.py --engine-dir engines/smollm2-135m --work /tmp/bench [--arms resps]

Arms take turns (A B C A B C ...), each turn in a process of its own with the same thread count, so that none of them has the others' thread
pools and memory beside it; figures are medians over all turns. Greedy, no stop token. Texts are compared.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from hf_copy import write_hf_directory

from policy import PLAIN, FixedPolicy
from runtime import Decoder
from runtime.tree import Tree

PROMPTS = (
    "The history of the city of Rome begins",
    "def quicksort(items):\n    ",
    "Dear customer, we are sorry to hear that your order",
)
ROWS = (1, 2, 4, 8, 16, 32, 64)
Arm = Callable[[list[int], int], tuple[list[int], float]]
"""(prompt ids, new tokens) -> (tokens, decode tokens per second after the first token)"""


def ours(decoder: Decoder) -> Arm:
    def run(prompt: list[int], count: int) -> tuple[list[int], float]:
        result = decoder.generate(prompt, max_new_tokens=count)
        return list(result.tokens), result.stats.tokens_per_second

    return run


def with_transformers(directory: Path, threads: int) -> Arm:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

    class Clock(BaseStreamer):
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: object) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def run(prompt: list[int], count: int) -> tuple[list[int], float]:
        clock, ids = Clock(), torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False, streamer=clock
        )
        return out[0, len(prompt) :].tolist(), (count - 1) / (clock.times[-1] - clock.times[1])

    return run


def with_genai(hf: Path, directory: Path, threads: int) -> Arm:
    if not (directory / "genai_config.json").exists():
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(hf), "-o", str(directory), "-p", "fp32", "-e", "cpu"]
        subprocess.run([*builder, "-c", str(directory / "cache")], check=True, capture_output=True)
        file = directory / "genai_config.json"
        config = json.loads(file.read_text())
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads  # its own default is one thread here
        file.write_text(json.dumps(config))
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(directory))

    def run(prompt: list[int], count: int) -> tuple[list[int], float]:
        params = onnxruntime_genai.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + count, min_length=len(prompt) + count, do_sample=False)
        generator = onnxruntime_genai.Generator(model, params)
        generator.append_tokens(np.array(prompt, np.int32))
        generator.generate_next_token()
        started = time.perf_counter()
        for _ in range(count - 1):
            generator.generate_next_token()
        seconds = time.perf_counter() - started
        return generator.get_sequence(0)[len(prompt) :].tolist(), (count - 1) / seconds

    return run


def pass_milliseconds(decoder: Decoder, rounds: int) -> dict[int, float]:
    """Median time of one verify pass by rows, at a context of about 200 tokens."""
    target, times = decoder._target, {rows: [] for rows in ROWS}
    target.cache.truncate(0)
    list(target.prefill(list(range(100, 292 - max(ROWS)))))
    for _ in range(rounds):
        for rows in ROWS:
            tree = Tree.chain(list(range(100, 100 + rows)))
            target.verify(tree)
            for _ in range(5):
                started = time.perf_counter()
                target.verify(tree)
                times[rows].append(time.perf_counter() - started)
    return {rows: 1000 * statistics.median(each) for rows, each in times.items()}


def peak_memory_mib(engine_dir: Path) -> float:
    """Peak memory of a whole resps-run process."""
    code = (
        "import sys; from pathlib import Path; from runtime.cli import command; from runtime.console import run_command;"
        f"run_command(command, 'resps-run', ['--engine-dir', {str(engine_dir)!r}, '--no-stream', '--max-new-tokens', '128', 'Rome']);"
        "sys.stderr.write(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stderr) / 1024


def prompt_ids(engine_dir: Path) -> list[list[int]]:
    from runtime.manifest import find_engine_dir, load_manifest
    from runtime.text import Text

    directory = find_engine_dir(engine_dir)
    text = Text(directory, load_manifest(directory, verify=False).tokens)
    return [text.encode(prompt) for prompt in PROMPTS]


def turn(name: str, engine_dir: Path, work: Path, new_tokens: int, threads: int, rounds: int) -> dict[str, Any]:
    """One turn of an arm: a warm-up, then every prompt once; for ours the passes by rows too."""
    prompts, extra = prompt_ids(engine_dir), {}
    if name == "resps":
        decoder = Decoder(engine_dir, policy=FixedPolicy(PLAIN), draft="none", threads=threads)
        object.__setattr__(decoder.manifest.tokens, "stop", ())  # the other arms cannot stop early either
        arm = ours(decoder)
        extra = {"pass_ms": pass_milliseconds(decoder, rounds)}
    elif name == "onnxruntime-genai":
        arm = with_genai(work / "hf", work / "genai-fp32", threads)
    else:
        arm = with_transformers(work / "hf", threads)
    arm(prompts[0], 16)
    results = [arm(prompt, new_tokens) for prompt in prompts]
    return {"tokens": [tokens for tokens, _ in results], "rates": [rate for _, rate in results], **extra}


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where the other engines' files are put and kept.")
@click.option("--arms", default="resps,onnxruntime-genai,transformers", show_default=True)
@click.option("--new-tokens", default=128, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only-turn", hidden=True)
def main(engine_dir: Path, work: Path, arms: str, new_tokens: int, rounds: int, threads: int, only_turn: str | None) -> None:
    """Print the comparison as one JSON object a line."""
    if only_turn:
        click.echo(json.dumps(turn(only_turn, engine_dir, work, new_tokens, threads, rounds)))
        return
    write_hf_directory(work / "hf")
    names = arms.split(",")
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            done = subprocess.run([sys.executable, *sys.argv, "--only-turn", name], capture_output=True, text=True, check=True)
            turns[name].append(json.loads(done.stdout.splitlines()[-1]))
    rates = {name: [rate for each in turns[name] for rate in each["rates"]] for name in names}
    medians = {name: statistics.median(each) for name, each in rates.items()}
    report = {
        "tokens_per_second": {name: round(each, 1) for name, each in medians.items()},
        "spread": {name: [round(min(each), 1), round(max(each), 1)] for name, each in rates.items()},
        "resps_relative_to": {name: round(medians["resps"] / each, 3) for name, each in medians.items()},
        "same_text": {name: all(each["tokens"] == turns["resps"][0]["tokens"] for each in turns[name]) for name in names},
        "pass_ms": {rows: round(statistics.median(each["pass_ms"][str(rows)] for each in turns["resps"]), 1) for rows in ROWS},
        "peak_memory_mib": round(peak_memory_mib(engine_dir)),
    }
    for key, value in report.items():
        click.echo(json.dumps({key: value}))


if __name__ == "__main__":
    main()
