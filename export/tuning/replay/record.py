"""Answers the tuning prompts and traces the answers. Each trace is cached in a file, so that an interrupted tuning can continue."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from runtime import Decoder, SamplingParams
from runtime.decoder import Prompt

from ..errors import TuningError
from .grid import TreeGrid
from .lanes_traces import trace_answers
from .traces import Trace, trace_answer

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
    """Answer each prompt and trace the answer for every width of the grid, as many at a time as ``decoder`` has lanes. Returns the
    traces of each answer by width.

    Sampling is greedy by default. Answers that an earlier run recorded in ``cache`` are read back. Prompts that do not fit into the context
    are skipped. Recording stops at ``deadline`` (of perf_counter), but not before ``min_prompts`` answers (default: MIN_PROMPTS).
    Raises TuningError if there are fewer.
    """
    sampling, min_prompts = sampling or SamplingParams(), MIN_PROMPTS if min_prompts is None else min_prompts
    cache.mkdir(parents=True, exist_ok=True)
    answers: list[dict[int, Trace]] = []
    for start in range(0, len(prompts), decoder.lanes):
        if len(answers) >= min_prompts and perf_counter() > deadline:
            break
        batch = prompts[start : start + decoder.lanes]
        files = {cache / _file_name(prompt, grid, sampling): decoder.encode(as_chat(decoder, prompt)) for prompt in batch}
        fitting = {file: ids for file, ids in files.items() if len(ids) + grid.new_tokens < decoder.manifest.limits.context}
        if missing := {file: ids for file, ids in fitting.items() if not file.is_file()}:
            _record_answers(decoder, missing, grid, sampling)
        answers += [traces for file in fitting if (traces := _load(file))]
        progress("recording answers", start + len(batch), len(prompts))
    if len(answers) < min_prompts:
        raise TuningError(f"only {len(answers)} prompts have an answer that fits, tuning needs {min_prompts} — give more with --prompts")
    return answers


def _file_name(prompt: str, grid: TreeGrid, sampling: SamplingParams) -> str:
    key = f"{prompt}|{grid.widths}|{max(grid.depths)}|{grid.new_tokens}|{sampling}"
    return f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"


def as_chat(decoder: Decoder, prompt: str) -> Prompt:
    """The prompt as a chat message, or as plain text if the model has no chat template."""
    return [{"role": "user", "content": prompt}] if decoder.manifest.tokens.chats else prompt


def _record_answers(decoder: Decoder, prompts: Mapping[Path, Sequence[int]], grid: TreeGrid, sampling: SamplingParams) -> None:
    """Answer each prompt and save the answer's traces by width; none for an answer of one token, which has no tree."""
    params, depth = replace(sampling, max_new_tokens=grid.new_tokens), max(grid.depths)
    if decoder.lanes == 1:
        for file, ids in prompts.items():
            answer = decoder.generate(ids, params).tokens
            _save(file, len(ids), {width: trace_answer(decoder, ids, answer, depth, width) for width in grid.widths if len(answer) > 1})
        return
    streams = [decoder.stream(ids, params) for ids in prompts.values()]
    answers = {file: stream.result().tokens for file, stream in zip(prompts, streams, strict=True)}
    decoder.forget()
    whole = {file: answer for file, answer in answers.items() if len(answer) > 1}
    traces = trace_answers(decoder, [prompts[file] for file in whole], list(whole.values()), depth, grid.widths) if whole else []
    found = dict(zip(whole, traces, strict=True))
    for file, ids in prompts.items():
        _save(file, len(ids), found.get(file, {}))


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
