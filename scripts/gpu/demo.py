"""The demo model end to end on the GPU: its text compared with the CPU's, losslessness, speed, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.cli import command
from policy import PLAIN, FixedPolicy, Policy, TreeSpec
from runtime import Decoder, RespsError, SamplingParams
from runtime.backends.cuda.driver import Cuda
from runtime.console import run_command
from runtime.decoder import Prompt
from tests.support.prompts import PROMPTS

NEW_TOKENS, TIMES = 128, 3
TREES = [(2, 1, 1), (4, 3, 1), (8, 4, 4), (16, 5, 4), (32, 7, 8), (64, 8, 10)]


def demo(work: Path, weights: str | None) -> dict[str, Any]:
    """TensorRT in fp16 and fp32, ONNX Runtime's CUDA provider in fp32, each compared with the CPU. ``weights``: the model's GGUF."""
    cpu = export_demo(work, weights, "cpu")
    with Decoder(cpu, policy=FixedPolicy(PLAIN)) as decoder:
        expected = [_tokens(decoder, prompt) for prompt in PROMPTS]
    report: dict[str, Any] = {}
    for precision in ("fp16", "fp32"):
        name = f"tensorrt-{precision}"
        try:
            report[name] = _measure(export_demo(work, weights, name, precision), expected, {})
        except (RespsError, RuntimeError) as error:
            report[name] = {"error": str(error)}
    try:
        report["onnxruntime-cuda-fp32"] = _measure(cpu, expected, {"device": "cuda"})
    except RespsError as error:
        report["onnxruntime-cuda-fp32"] = {"error": str(error)}
    return report


def export_demo(work: Path, weights: str | None, name: str, precision: str | None = None, *more: str) -> Path:
    """``work``/``name``: the demo model for the CPU or, with a ``precision``, for TensorRT. ``more``: options. Kept if up to date. Raises
    RuntimeError."""
    source = ["--model", "smollm2-135m", *(["--weights", weights] if weights else [])]
    backend = ["--backend", "tensorrt", "--precision", precision] if precision else []
    export(*source, *backend, *more, "--out", str(work), "--name", name)
    return work / name


def export(*arguments: str) -> None:
    """Run resps-export. Raises RuntimeError if it fails."""
    if code := run_command(command, "resps-export", arguments):
        raise RuntimeError(f"resps-export {' '.join(arguments)} ended with {code}, see above")


def _tokens(decoder: Decoder, prompt: Prompt, policy: Policy | None = None, sampling: SamplingParams = SamplingParams()) -> tuple[int, ...]:
    return decoder.generate(prompt, replace(sampling, max_new_tokens=NEW_TOKENS), policy=policy).tokens


def _measure(directory: Path, expected: Sequence[tuple[int, ...]], options: dict[str, Any]) -> dict[str, Any]:
    cuda = Cuda()  # creates the CUDA context first, so that only the Decoder's memory is counted
    before, started = cuda.free_memory(), time.perf_counter()
    with Decoder(directory, **options) as decoder:
        loaded, during = time.perf_counter() - started, cuda.free_memory()
        plain = [_tokens(decoder, prompt, FixedPolicy(PLAIN)) for prompt in PROMPTS]
        report: dict[str, Any] = {
            "load_seconds": round(loaded, 1),
            "memory_mib": (before - during) >> 20,
            "answers_equal_to_cpu": f"{sum(a == b for a, b in zip(plain, expected, strict=True))} of {len(PROMPTS)}",
            "tokens_before_first_difference_from_cpu": _agreeing(plain, expected),
            "losslessness": _losslessness(decoder, plain),
            "speed": _speed(decoder),
        }
    after = cuda.free_memory()
    cuda.close()
    return {**report, "memory_not_returned_mib": (before - after) >> 20}


def _agreeing(answers: Sequence[tuple[int, ...]], expected: Sequence[tuple[int, ...]]) -> str:
    same = total = 0
    for one, other in zip(answers, expected, strict=True):
        same += next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        total += len(other)
    return f"{same} of {total}"


def _specs(decoder: Decoder) -> list[TreeSpec]:
    sizes = decoder.manifest.tree_sizes
    return [TreeSpec(*tree) for tree in TREES if tree[0] in sizes]


def _losslessness(decoder: Decoder, plain: Sequence[tuple[int, ...]]) -> dict[str, str]:
    """By tree: answers equal to plain decoding on the same engine, and tokens before the first difference."""
    report = {}
    for spec in _specs(decoder):
        answers = [_tokens(decoder, prompt, FixedPolicy(spec)) for prompt in PROMPTS]
        equal = sum(a == b for a, b in zip(answers, plain, strict=True))
        report[str(spec)] = f"{equal} of {len(plain)} answers equal; {_agreeing(answers, plain)} tokens before the first difference"
    return report


def _speed(decoder: Decoder) -> dict[str, Any]:
    """By tree: tokens/s (medians of interleaved runs), tokens per cycle, milliseconds per cycle."""
    specs = [PLAIN, *_specs(decoder)]
    rates: dict[str, list[float]] = {str(spec): [] for spec in specs}
    cycles: dict[str, list[float]] = {str(spec): [] for spec in specs}
    per_cycle: dict[str, list[float]] = {str(spec): [] for spec in specs}
    for _ in range(TIMES):
        for spec in specs:
            stats = [
                decoder.generate(prompt, SamplingParams(max_new_tokens=NEW_TOKENS), policy=FixedPolicy(spec)).stats
                for prompt in PROMPTS[:8]
            ]
            seconds, tokens = sum(answer.decode_seconds for answer in stats), sum(answer.new_tokens - 1 for answer in stats)
            rounds = sum(answer.cycles for answer in stats)
            rates[str(spec)].append(tokens / seconds)
            cycles[str(spec)].append(1000 * seconds / rounds)
            per_cycle[str(spec)].append(tokens / rounds)
    base = statistics.median(rates[str(PLAIN)])
    return {
        name: {
            "tokens_per_second": round(statistics.median(rates[name]), 1),
            "to_plain": round(statistics.median(rates[name]) / base, 3),
            "tokens_per_cycle": round(statistics.median(per_cycle[name]), 2),
            "cycle_ms": round(statistics.median(cycles[name]), 3),
        }
        for name in rates
    }
