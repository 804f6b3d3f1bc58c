"""Measures the latency model on this machine: drafting by width and depth, verifying by rows and context, and the host's own work."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter

import numpy as np

from policy import FixedPolicy, LatencyModel, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.decoding.sampling import TargetOutput
from runtime.decoding.target import Target
from runtime.decoding.tree import Tree
from runtime.drafters.draft_model import ModelDrafter

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
SPANS = (128, 512, 1024, 2048, 4096)  # cache slots that a pass reads
LONG_SPAN, LONG_INTERVAL = 1024, 3  # longer spans are measured in every third repeat only, because filling the cache takes long
PROMPT_TOKENS = 32
COMMITTED = 2  # tokens that a round usually commits


def measure_latency(
    decoder: Decoder,
    widths: Sequence[int],
    depths: Sequence[int],
    max_rows: int,
    repeats: int = 15,
    progress: Callable[[float], None] = lambda _: None,
) -> LatencyModel:
    """Medians of ``repeats`` measurements, in milliseconds. Every repeat measures each point once, so that a slow moment of the machine
    affects all points alike. ``progress`` is called with the share done."""
    target, drafter, limits = decoder.models.target, decoder.models.eagle, decoder.manifest.limits
    assert drafter is not None
    sizes = decoder.manifest.tree_sizes if decoder.manifest.tensorrt else ROWS
    rows = tuple(count for count in sizes if count <= min(max_rows, limits.tree_nodes))
    spans = tuple(span for span in SPANS if span + max_rows < limits.context) or (limits.context - 1,)
    verify: dict[tuple[int, int], list[float]] = {(span, count): [] for span in spans for count in rows}
    draft: dict[tuple[int, int], list[float]] = {(width, depth): [] for width in widths for depth in depths}
    round_tree = TreeSpec(rows[min(3, len(rows) - 1)], min(2, depths[-1]), widths[-1])
    rounds: list[float] = []
    for repeat in range(repeats):
        _fill_cache(target, drafter, 0, spans[:2][-1] - max_rows)
        warm = False
        for width, depth in draft:
            spec = TreeSpec(min(limits.tree_nodes, TreeSpec(1, depth, width).capacity), depth, width)
            if repeat == 0 or not warm:
                _draft_tree(drafter, spec, target.verify(Tree.chain([7] * COMMITTED)))  # binds buffers, reads the rest of the prompt
                warm = True
            # Drafting is timed right after a target pass, as in service, where the target's weights have just evicted the draft's
            # from the processor's caches.
            output = target.verify(Tree.chain([7] * COMMITTED))
            draft[width, depth].append(_milliseconds(partial(_draft_tree, drafter, spec, output)))
        filled = 0
        for span in spans if repeat % LONG_INTERVAL == 0 else [span for span in spans if span <= LONG_SPAN] or spans:
            filled = _fill_cache(target, drafter, filled, span - max_rows)
            for count in rows:
                target.verify(Tree.chain([7] * count))  # binds buffers, lays out caches
                verify[span, count].append(_milliseconds(partial(target.verify, Tree.chain([7] * count))))
        rounds.append(_round_ms(decoder, round_tree))
        progress((repeat + 1) / repeats)
    target.cache.truncate(0)
    drafter.begin()
    latency = LatencyModel(
        rows=rows,
        spans=spans,
        verify_ms=tuple(tuple(statistics.median(verify[span, count]) for count in rows) for span in spans),
        widths=tuple(widths),
        depths=tuple(depths),
        draft_ms=tuple(tuple(statistics.median(draft[width, depth]) for depth in depths) for width in widths),
        host_ms=_host_ms(decoder),
    )
    # Whole rounds take longer than the sum of the parts; the difference is added to drafting. Both were measured in the same repeats, so a
    # busy machine slowed both down.
    missing = max(0.0, statistics.median(rounds) - latency.round_with(round_tree, PROMPT_TOKENS))
    return replace(latency, draft_ms=tuple(tuple(cost + missing for cost in costs) for costs in latency.draft_ms))


def _draft_tree(drafter: ModelDrafter, spec: TreeSpec, output: TargetOutput) -> None:
    drafter.extend([7] * COMMITTED, output, range(COMMITTED))
    drafter.draft(7, spec)


def _fill_cache(target: Target, drafter: ModelDrafter, start: int, length: int) -> int:
    """Commit tokens until the cache holds ``length``; it holds ``start`` now (0: empty it first). Returns ``length``."""
    if start == 0:
        target.cache.truncate(0)
        drafter.begin()
    for chunk, output in target.prefill([7] * (length - start)):
        drafter.extend(chunk, output, range(len(chunk)))
    return length


def _milliseconds(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return 1000 * (perf_counter() - started)


def _host_ms(decoder: Decoder) -> float:
    """Milliseconds of a round of plain decoding outside drafting and verifying."""
    prompt = np.random.default_rng(0).integers(0, decoder.manifest.shape.vocab, 32).tolist()
    stats = decoder.generate(prompt, SamplingParams(max_new_tokens=64), policy=FixedPolicy(TreeSpec(1, 0, 0))).stats
    return 1000 * max(0.0, stats.decode_seconds - stats.draft_seconds - stats.verify_seconds) / max(1, stats.cycles)


def _round_ms(decoder: Decoder, spec: TreeSpec) -> float:
    """Milliseconds of a whole round with ``spec`` in a real answer, including acceptance, commit and waking threads."""
    prompt = np.random.default_rng(0).integers(0, decoder.manifest.shape.vocab, PROMPT_TOKENS).tolist()
    stats = decoder.generate(prompt, SamplingParams(max_new_tokens=32), policy=FixedPolicy(spec)).stats
    return 1000 * stats.decode_seconds / max(1, stats.cycles)
