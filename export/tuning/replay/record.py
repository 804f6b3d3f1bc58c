"""Answers the tuning prompts and traces the answers. Each trace is cached in a file, so that an interrupted tuning can continue."""

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
from .traces import Trace, generate_answer, trace_answer

MIN_PROMPTS = 8
Progress = Callable[[str, int, int], None]
"""(step, number done, total)"""


def record(
    decoder: Decoder,
    prompts: Sequence[str],
    grid: TreeGrid,
    cache: Path,
    deadline: float,
    progress: Progress,
    sampling: SamplingParams | None = None,
    min_prompts: int | None = None,
) -> list[dict[int, Trace]]:
    """Answer each prompt and trace the answer for every width of the grid. Returns the traces of each answer by width.

    Sampling is greedy by default. Answers that an earlier run recorded in ``cache`` are read back. Prompts that do not fit into the context
    are skipped. Recording stops at ``deadline`` (of perf_counter), but not before ``min_prompts`` answers (default: MIN_PROMPTS).
    Raises TuningError if there are fewer.
    """
    sampling, min_prompts = sampling or SamplingParams(), MIN_PROMPTS if min_prompts is None else min_prompts
    cache.mkdir(parents=True, exist_ok=True)
    answers: list[dict[int, Trace]] = []
    for done, prompt in enumerate(prompts):
        if len(answers) >= min_prompts and perf_counter() > deadline:
            break
        ids = decoder.encode(as_chat(decoder, prompt))
        if len(ids) + grid.new_tokens >= decoder.manifest.limits.context:
            continue
        key = f"{prompt}|{grid.widths}|{max(grid.depths)}|{grid.new_tokens}|{sampling}"
        file = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
        traces = _load(file) if file.is_file() else _record_answer(decoder, ids, grid, file, sampling)
        if traces:
            answers.append(traces)
        progress("recording answers", done + 1, len(prompts))
    if len(answers) < min_prompts:
        raise TuningError(f"only {len(answers)} prompts have an answer that fits, tuning needs {min_prompts} — give more with --prompts")
    return answers


def as_chat(decoder: Decoder, prompt: str) -> Prompt:
    """The prompt as a chat message, or as plain text if the model has no chat template."""
    return [{"role": "user", "content": prompt}] if decoder.manifest.tokens.chats else prompt


def _record_answer(decoder: Decoder, ids: Sequence[int], grid: TreeGrid, file: Path, sampling: SamplingParams) -> dict[int, Trace]:
    """Traces by width; none for an answer of one token, which has no tree."""
    answer = generate_answer(decoder, ids, grid.new_tokens, sampling)
    traces = {} if len(answer) < 2 else {width: trace_answer(decoder, ids, answer, max(grid.depths), width) for width in grid.widths}
    _save(file, len(ids), traces)
    return traces


def _save(file: Path, prompt_tokens: int, traces: dict[int, Trace]) -> None:
    arrays: dict[str, Any] = {"prompt": np.array(prompt_tokens), "widths": np.array(list(traces), np.int64)}
    for width, trace in traces.items():
        arrays |= {f"{width}.scores": trace.scores, f"{width}.levels": trace.levels, f"{width}.right": trace.path}
        arrays["features"] = trace.features
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(file)


def _load(file: Path) -> dict[int, Trace]:
    with np.load(file, allow_pickle=False) as arrays:
        prompt_tokens, features = int(arrays["prompt"]), arrays["features"] if "features" in arrays else np.zeros(0)
        return {
            int(width): Trace(
                prompt_tokens, int(width), arrays[f"{width}.scores"], arrays[f"{width}.levels"], arrays[f"{width}.right"], features
            )
            for width in arrays["widths"]
        }
