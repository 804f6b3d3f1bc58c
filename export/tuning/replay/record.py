"""Answers to the tuning's prompts, each with every tree that the draft would have grown; kept, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from runtime import Decoder, SamplingParams
from runtime.decoder import Prompt

from ..errors import TuningError
from .grid import TreeGrid
from .traces import Trace, trace, write_answer

LEAST_PROMPTS = 8
Progress = Callable[[str, int, int], None]
"""(step, done, total)"""


def record(
    decoder: Decoder,
    prompts: Sequence[str],
    grid: TreeGrid,
    cache: Path,
    deadline: float,
    progress: Progress,
    sampling: SamplingParams | None = None,
    least: int | None = None,
) -> list[dict[int, Trace]]:
    """Answer each prompt, greedily unless told otherwise, and trace it for every width; what an earlier run recorded is read back.
    Stops at ``deadline`` (perf_counter) once ``least`` (default: LEAST_PROMPTS) are there. Raises TuningError when there are too few."""
    sampling, least = sampling or SamplingParams(), LEAST_PROMPTS if least is None else least
    cache.mkdir(parents=True, exist_ok=True)
    answers: list[dict[int, Trace]] = []
    for done, prompt in enumerate(prompts):
        if len(answers) >= least and perf_counter() > deadline:
            break
        ids = decoder.encode(asked(decoder, prompt))
        if len(ids) + grid.new_tokens >= decoder.manifest.limits.context:
            continue
        what = f"{prompt}|{grid.widths}|{max(grid.depths)}|{grid.new_tokens}|{sampling}"
        file = cache / f"{hashlib.sha256(what.encode()).hexdigest()[:24]}.npz"
        traces = _stored(file) if file.is_file() else _recorded(decoder, ids, grid, file, sampling)
        if traces:
            answers.append(traces)
        progress("recording answers", done + 1, len(prompts))
    if len(answers) < least:
        raise TuningError(f"only {len(answers)} prompts have an answer that fits, tuning needs {least} — give more with --prompts")
    return answers


def asked(decoder: Decoder, prompt: str) -> Prompt:
    """In the model's chat template, if it has one."""
    return [{"role": "user", "content": prompt}] if decoder.manifest.tokens.chat_template else prompt


def _recorded(decoder: Decoder, ids: Sequence[int], grid: TreeGrid, file: Path, sampling: SamplingParams) -> dict[int, Trace]:
    answer = write_answer(decoder, ids, grid.new_tokens, sampling)
    traces = {} if len(answer) < 2 else {width: trace(decoder, ids, answer, max(grid.depths), width) for width in grid.widths}
    return _kept(file, len(ids), traces)


def _kept(file: Path, prompt: int, traces: dict[int, Trace]) -> dict[int, Trace]:
    arrays: dict[str, Any] = {"prompt": np.array(prompt), "widths": np.array(list(traces), np.int64)}
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
    return {width: Trace(prompt, width, scores, levels, right, features) for width, (scores, levels, right) in parts.items()}
