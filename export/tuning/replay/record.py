"""Answers to the tuning's prompts, each with every tree that the draft would have grown; kept, so that an interrupted run goes on."""

from __future__ import annotations

import dataclasses
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
    texts: bool = False,
) -> list[dict[int, Trace]]:
    """Answer each prompt, greedily unless told otherwise, and trace it for every width; what an earlier run recorded is read back, unless
    ``texts`` are needed and it lacks them. Stops at ``deadline`` (perf_counter) once ``least`` (default: LEAST_PROMPTS) are there. Raises
    TuningError when there are too few."""
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
        traces = _stored(file, decoder) if file.is_file() else None
        if traces is None:
            traces = _recorded(decoder, ids, grid, file, sampling)
        elif texts and not all(len(each.tokens) for each in traces.values()):
            traces = _spelled(decoder, ids, grid, file, sampling, traces)
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
    traces = {} if len(answer) < 2 else {width: trace(decoder, file.stem, ids, answer, max(grid.depths), width) for width in grid.widths}
    return _kept(file, len(ids), traces)


def _spelled(
    decoder: Decoder, ids: Sequence[int], grid: TreeGrid, file: Path, sampling: SamplingParams, traces: dict[int, Trace]
) -> dict[int, Trace]:
    """A record that lacks its tokens, with the answer written once more: that takes a tenth of tracing it."""
    answer = write_answer(decoder, ids, grid.new_tokens, sampling)
    if any(len(answer) != len(each) + 1 for each in traces.values()):
        return _recorded(decoder, ids, grid, file, sampling)
    tokens = np.array([*ids, *answer], np.int64)
    return _kept(file, len(ids), {width: dataclasses.replace(each, tokens=tokens) for width, each in traces.items()})


def _kept(file: Path, prompt: int, traces: dict[int, Trace]) -> dict[int, Trace]:
    arrays: dict[str, Any] = {"prompt": np.array(prompt), "widths": np.array(list(traces), np.int64)}
    for width, each in traces.items():
        arrays |= {f"{width}.{part}": getattr(each, part) for part in ("scores", "levels", "right")}
        arrays |= {"features": each.features, "tokens": each.tokens}
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(file)
    return traces


def _stored(file: Path, decoder: Decoder) -> dict[int, Trace]:
    with np.load(file, allow_pickle=False) as found:
        prompt, features = int(found["prompt"]), found["features"] if "features" in found else np.zeros(0)
        tokens = found["tokens"] if "tokens" in found else np.zeros(0, np.int64)
        parts = {int(width): [found[f"{width}.{part}"] for part in ("scores", "levels", "right")] for width in found["widths"]}
    rest = (features, tokens, decoder.decode)
    return {width: Trace(file.stem, prompt, width, scores, levels, right, *rest) for width, (scores, levels, right) in parts.items()}
