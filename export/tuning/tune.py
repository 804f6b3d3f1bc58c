"""resps-tune, step by step: record answers, measure the machine, fit, confirm by wall clock. Every step is a plain function."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from policy import PLAIN, Calibration, CostModel, FixedPolicy, Policy, Surface, TreeSpec, Watched
from runtime import Decoder, Sampling

from .calibrate import fit_cost_model
from .errors import TuningError
from .replay import Answers, best_static, replay, static_trees
from .traces import Trace, trace, write_answer

LEAST_PROMPTS = 8
Progress = Callable[[str, int, int], None]
"""(step, done, total)"""


@dataclass(frozen=True)
class Grid:
    """Which trees are considered: widths and depths, and the most nodes."""

    widths: tuple[int, ...] = (1, 2, 3)
    depths: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    nodes: int = 16
    new_tokens: int = 128


@dataclass(frozen=True)
class Found:
    """What the recorded answers say. Rates are tokens per millisecond in simulated time, on prompts that nothing was fitted to."""

    static: TreeSpec
    calibration: Calibration
    held_out: Mapping[str, float]


def record(
    decoder: Decoder, prompts: Sequence[str], grid: Grid, cache: Path, deadline: float, progress: Progress
) -> list[dict[int, Trace]]:
    """Answer each prompt and trace it for every width; what an earlier run recorded is read back. Stops at ``deadline`` (perf_counter)
    once LEAST_PROMPTS are there. Raises TuningError when there are too few."""
    cache.mkdir(parents=True, exist_ok=True)
    answers: list[dict[int, Trace]] = []
    for done, prompt in enumerate(prompts):
        if len(answers) >= LEAST_PROMPTS and perf_counter() > deadline:
            break
        ids = decoder.encode([{"role": "user", "content": prompt}])
        if len(ids) + grid.new_tokens >= decoder.manifest.limits.context:
            continue
        file = cache / f"{hashlib.sha256(f'{prompt}|{grid}'.encode()).hexdigest()[:24]}.npz"
        traces = _stored(file) if file.is_file() else _recorded(decoder, ids, grid, file)
        if traces:
            answers.append(traces)
        progress("recording answers", done + 1, len(prompts))
    if len(answers) < LEAST_PROMPTS:
        raise TuningError(f"only {len(answers)} prompts have an answer that fits, tuning needs {LEAST_PROMPTS} — give more with --prompts")
    return answers


def _recorded(decoder: Decoder, ids: Sequence[int], grid: Grid, file: Path) -> dict[int, Trace]:
    answer = write_answer(decoder, ids, grid.new_tokens, Sampling())
    traces = {} if len(answer) < 2 else {width: trace(decoder, file.stem, ids, answer, max(grid.depths), width) for width in grid.widths}
    arrays: dict[str, Any] = {"prompt": np.array(len(ids)), "widths": np.array(list(traces), np.int64)}
    for width, each in traces.items():
        arrays |= {f"{width}.{part}": getattr(each, part) for part in ("scores", "levels", "right")}
        arrays["features"] = each.features
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(file)
    return traces


def _stored(file: Path) -> dict[int, Trace]:
    with np.load(file, allow_pickle=False) as found:
        prompt, features = int(found["prompt"]), found["features"] if "features" in found else np.zeros(0)
        parts = {int(width): [found[f"{width}.{part}"] for part in ("scores", "levels", "right")] for width in found["widths"]}
    return {width: Trace(file.stem, prompt, width, scores, levels, right, features) for width, (scores, levels, right) in parts.items()}


def fit(answers: Answers, surface: Surface, grid: Grid, sizes: tuple[int, ...] | None) -> Found:
    """The best fixed tree and the closed form on two thirds of the answers, and what they do on the others."""
    learned_from = [each for index, each in enumerate(answers) if index % 3]
    held_out = answers[::3]
    static, done = best_static(learned_from, surface, static_trees(grid.widths, grid.depths, grid.nodes, sizes))
    largest = [
        (min(grid.nodes, TreeSpec(1, max(grid.depths), width).capacity), max(grid.depths), width) for width in grid.widths if width > 1
    ]
    calibration, _ = fit_cost_model(learned_from, surface, largest, done.rate, sizes)
    policies: dict[str, Policy] = {
        "none": FixedPolicy(PLAIN),
        "fixed": FixedPolicy(static),
        "cost-model": CostModel(calibration, surface, sizes),
    }
    return Found(static, calibration, {name: replay(policy, held_out, surface).rate for name, policy in policies.items()})


def confirm(
    decoder: Decoder, prompts: Sequence[str], policies: Mapping[str, Policy], new_tokens: int, deadline: float, progress: Progress
) -> dict[str, float]:
    """Tokens per second over plain decoding ("none" is among the policies), medians over prompts; all take turns prompt by prompt."""
    ratios: dict[str, list[float]] = {name: [] for name in policies}
    for done, prompt in enumerate(prompts):
        if done >= LEAST_PROMPTS and perf_counter() > deadline:
            break
        rates = {
            name: decoder.generate([{"role": "user", "content": prompt}], max_new_tokens=new_tokens, policy=policy).stats.tokens_per_second
            for name, policy in policies.items()
        }
        if rates["none"]:
            for name, rate in rates.items():
                ratios[name].append(rate / rates["none"])
        progress("confirming by wall clock", done + 1, len(prompts))
    return {name: statistics.median(each) for name, each in ratios.items()}


def candidates(found: Found, surface: Surface, sizes: tuple[int, ...] | None) -> dict[str, Policy]:
    """What is confirmed, as it would run in service."""
    cost_model = Watched(CostModel(found.calibration, surface, sizes), found.static)
    return {"none": FixedPolicy(PLAIN), "fixed": FixedPolicy(found.static), "cost-model": cost_model}
